"""Tasks that reach a target, and after how many of them an up-front cost is repaid."""
