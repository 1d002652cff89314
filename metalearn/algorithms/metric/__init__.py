"""Learned comparisons and closed-form heads on learned features."""
