"""Rows of numbers: columns in memory, and episodes of rows."""
