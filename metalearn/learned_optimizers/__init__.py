"""Update rules with parameters, learned across tasks."""

from __future__ import annotations

from metalearn.learned_optimizers.adafactor_mlp import AdafactorMLP
from metalearn.learned_optimizers.hyper import Hyper
from metalearn.learned_optimizers.learned import LearnedRule, Theta, carried
from metalearn.learned_optimizers.learned_adam import LearnedAdam
from metalearn.learned_optimizers.learned_momentum import LearnedMomentum
from metalearn.learned_optimizers.learned_rates import LearnedRates
from metalearn.learned_optimizers.learned_sgd import LearnedSGD
from metalearn.learned_optimizers.lstm import LSTM
from metalearn.learned_optimizers.mlp import MLP
from metalearn.learned_optimizers.tables import LEARNED_RULES, LearnedRuleChoice

__all__ = [
    "LEARNED_RULES",
    "LSTM",
    "MLP",
    "AdafactorMLP",
    "Hyper",
    "LearnedAdam",
    "LearnedMomentum",
    "LearnedRates",
    "LearnedRule",
    "LearnedRuleChoice",
    "LearnedSGD",
    "Theta",
    "carried",
]
