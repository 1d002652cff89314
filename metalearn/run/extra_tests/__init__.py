"""Tests of a trained run beside the main one: inductive, and of checkpoints along its training."""
