"""Learned update rules by name, and the type of the fields that choose one."""

from __future__ import annotations

from typing import Annotated

from metalearn.component import OneOf
from metalearn.learned_optimizers.rules.adafactor_mlp import AdafactorMLP
from metalearn.learned_optimizers.rules.hyper import Hyper
from metalearn.learned_optimizers.rules.learned_adam import LearnedAdam
from metalearn.learned_optimizers.rules.learned_momentum import LearnedMomentum
from metalearn.learned_optimizers.rules.learned_rates import LearnedRates
from metalearn.learned_optimizers.rules.learned_rule import LearnedRuleComponent
from metalearn.learned_optimizers.rules.learned_sgd import LearnedSGD
from metalearn.learned_optimizers.rules.lstm import LSTM
from metalearn.learned_optimizers.rules.mlp import MLP

LEARNED_RULES: dict[str, type[LearnedRuleComponent]] = {
    "learned_sgd": LearnedSGD,
    "learned_momentum": LearnedMomentum,
    "learned_adam": LearnedAdam,
    "learned_rates": LearnedRates,
    "lstm": LSTM,
    "mlp": MLP,
    "adafactor_mlp": AdafactorMLP,
    "hyper": Hyper,
}
LearnedRuleChoice = Annotated[
    LearnedSGD | LearnedMomentum | LearnedAdam | LearnedRates | LSTM | MLP | AdafactorMLP | Hyper,
    OneOf(LEARNED_RULES, LearnedRuleComponent, "learned rule"),
]
