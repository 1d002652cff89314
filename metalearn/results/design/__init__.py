"""How a comparison was made: its protocol, its tuning, and what a single query is worth."""
