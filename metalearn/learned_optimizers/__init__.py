"""Update rules with parameters, learned across tasks."""

from __future__ import annotations

from metalearn.component import MethodComponent
from metalearn.learned_optimizers.adafactor_mlp import AdafactorMLP
from metalearn.learned_optimizers.es import ES
from metalearn.learned_optimizers.horizons import HORIZONS, Constant, LogUniform
from metalearn.learned_optimizers.hyper import Hyper
from metalearn.learned_optimizers.learn_optimizer import ESTIMATORS, LearnOptimizer
from metalearn.learned_optimizers.learn_to_optimize import LearnToOptimize
from metalearn.learned_optimizers.learned import LearnedRule, Theta, carried
from metalearn.learned_optimizers.learned_adam import LearnedAdam
from metalearn.learned_optimizers.learned_momentum import LearnedMomentum
from metalearn.learned_optimizers.learned_rates import LearnedRates
from metalearn.learned_optimizers.learned_sgd import LearnedSGD
from metalearn.learned_optimizers.lstm import LSTM
from metalearn.learned_optimizers.mlp import MLP
from metalearn.learned_optimizers.nres import NRES
from metalearn.learned_optimizers.pes import PES
from metalearn.learned_optimizers.tables import LEARNED_RULES, LearnedRuleChoice
from metalearn.learned_optimizers.tbptt import TBPTT
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
    "carried",
]
