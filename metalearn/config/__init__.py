"""Experiment files: sections, overrides, validation, registry, and what is built of them."""
