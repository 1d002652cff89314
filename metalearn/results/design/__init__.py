"""The design of a comparison: its protocol, its tuning, its timing, and tests without
transduction."""
