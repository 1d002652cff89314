"""Update rules with parameters, learned across tasks."""

from __future__ import annotations

from metalearn.component import MethodComponent
from metalearn.learned_optimizers.estimators import ESTIMATORS
from metalearn.learned_optimizers.estimators.es import ES
from metalearn.learned_optimizers.estimators.nres import NRES
from metalearn.learned_optimizers.estimators.pes import PES
from metalearn.learned_optimizers.estimators.tbptt import TBPTT
from metalearn.learned_optimizers.horizons import HORIZONS, Constant, LogUniform
from metalearn.learned_optimizers.learn_optimizer import LearnOptimizer
from metalearn.learned_optimizers.learn_to_optimize import LearnToOptimize
from metalearn.learned_optimizers.rules import LEARNED_RULES, LearnedRuleChoice
from metalearn.learned_optimizers.rules.adafactor_mlp import AdafactorMLP
from metalearn.learned_optimizers.rules.hyper import Hyper
from metalearn.learned_optimizers.rules.learned_adam import LearnedAdam
from metalearn.learned_optimizers.rules.learned_momentum import LearnedMomentum
from metalearn.learned_optimizers.rules.learned_rates import LearnedRates
from metalearn.learned_optimizers.rules.learned_rule import LearnedRule, Theta, bind_theta
from metalearn.learned_optimizers.rules.learned_sgd import LearnedSGD
from metalearn.learned_optimizers.rules.lstm import LSTM
from metalearn.learned_optimizers.rules.mlp import MLP
from metalearn.learned_optimizers.tuned_adam import TunedAdam

LEARNED_OPTIMIZERS: dict[str, type[MethodComponent]] = {
    "learned_optimizer": LearnToOptimize,
    "learn_optimizer": LearnOptimizer,
    "tuned_adam": TunedAdam,
}

__all__ = [
    "ES",
    "ESTIMATORS",
    "HORIZONS",
    "LEARNED_OPTIMIZERS",
    "LEARNED_RULES",
    "LSTM",
    "MLP",
    "NRES",
    "PES",
    "TBPTT",
    "AdafactorMLP",
    "Constant",
    "Hyper",
    "LearnOptimizer",
    "LearnToOptimize",
    "LearnedAdam",
    "LearnedMomentum",
    "LearnedRates",
    "LearnedRule",
    "LearnedRuleChoice",
    "LearnedSGD",
    "LogUniform",
    "Theta",
    "TunedAdam",
    "bind_theta",
]
