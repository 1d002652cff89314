"""Update rules with parameters, learned across tasks."""

from __future__ import annotations

from metalearn.learned_optimizers.learned import LearnedRule, Theta, carried
from metalearn.learned_optimizers.learned_adam import LearnedAdam
from metalearn.learned_optimizers.learned_momentum import LearnedMomentum
from metalearn.learned_optimizers.learned_sgd import LearnedSGD
from metalearn.learned_optimizers.tables import LEARNED_RULES, LearnedRuleChoice

__all__ = [
    "LEARNED_RULES",
    "LearnedAdam",
    "LearnedMomentum",
    "LearnedRule",
    "LearnedRuleChoice",
    "LearnedSGD",
    "Theta",
    "carried",
]
