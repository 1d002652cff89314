"""Tasks that reach a target, and the number of them after which an up-front cost breaks even."""
