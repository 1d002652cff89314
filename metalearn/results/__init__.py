"""Finished runs as records: summaries, checks, costs, targets."""
