"""Learned optimizers compared with tuned hand-designed ones: `metalearn l2o`."""
