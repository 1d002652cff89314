"""How one task is learned: the inner loop, update rules, heads, and the batching over tasks."""

from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import episodic, make_learn, make_step_over_tasks, make_update
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
    "make_learn",
    "make_step_over_tasks",
    "make_update",
    "sgd",
    "support_loss",
]
