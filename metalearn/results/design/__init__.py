"""The design of a comparison: its protocol, its tuning, and tests without transduction."""
