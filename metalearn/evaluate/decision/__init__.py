"""Which way of learning new tasks costs the least: totals, the cheapest one, and its map."""
