"""Tabular benchmarks of small search spaces."""
