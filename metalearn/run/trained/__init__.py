"""A trained run in use: loaded, adapted to new examples, its optimizer applied elsewhere."""
