"""Estimators of the outer gradient by name, and the type of the fields that choose one."""

from __future__ import annotations

from typing import Annotated

from metalearn.component import OneOf
from metalearn.learned_optimizers.estimators.es import ES
from metalearn.learned_optimizers.estimators.estimator import EstimatorComponent
from metalearn.learned_optimizers.estimators.nres import NRES
from metalearn.learned_optimizers.estimators.pes import PES
from metalearn.learned_optimizers.estimators.tbptt import TBPTT

ESTIMATORS: dict[str, type[EstimatorComponent]] = {
    "tbptt": TBPTT,
    "es": ES,
    "pes": PES,
    "nres": NRES,
}
EstimatorChoice = Annotated[
    TBPTT | ES | PES | NRES, OneOf(ESTIMATORS, EstimatorComponent, "estimator")
]
