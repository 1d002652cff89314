"""Learned optimizers against tuned hand-made ones: `metalearn l2o`."""
