"""Variants of MAML: other rates, losses and gradients of the inner loop."""
