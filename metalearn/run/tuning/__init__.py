"""Tuning on validation tasks: which values are tried, the trials, and what they choose."""
