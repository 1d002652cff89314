"""Learned rules by name, and the type of the fields that choose one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metalearn.component import Component
from metalearn.learned_optimizers.learned_adam import LearnedAdam
from metalearn.learned_optimizers.learned_momentum import LearnedMomentum
from metalearn.learned_optimizers.learned_sgd import LearnedSGD

LEARNED_RULES: dict[str, type[Component]] = {
    "learned_sgd": LearnedSGD,
    "learned_momentum": LearnedMomentum,
    "learned_adam": LearnedAdam,
}
LearnedRuleChoice = Annotated[LearnedSGD | LearnedMomentum | LearnedAdam, Field(discriminator="name")]
