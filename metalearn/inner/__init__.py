"""How one task is learned: the inner loop, update rules, heads, and the batching over tasks."""

from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import episodic, outer_update, step_over_tasks, vmapped_learn
from metalearn.inner.rules import RULES, SGD, Adam, Momentum, Rule, adam, sgd

__all__ = [
    "RULES",
    "SGD",
    "Adam",
    "Momentum",
    "Rule",
    "adam",
    "adapt",
    "episodic",
    "outer_update",
    "sgd",
    "step_over_tasks",
    "support_loss",
    "vmapped_learn",
]
