"""Additional tests of a trained run: inductive, and of checkpoints along its training."""
