"""How long inner runs are during meta-training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import Component, option
from metalearn.types import Key


class Constant(Component):
    """Every inner run has the same number of steps."""

    name: Literal["constant"] = option("constant", "the schedule of lengths")
    steps: int = option(100, "inner steps of a run", ge=1, le=1_000_000)

    @property
    def longest(self) -> int:
        return self.steps

    @property
    def shortest(self) -> int:
        return self.steps

    def draw(self, key: Key, dtype: torch.dtype) -> Tensor:
        """[]"""
        return torch.full((), self.steps, dtype=dtype, device=key.device)


class LogUniform(Component):
    """Lengths drawn log-uniformly between two ends, anew for every inner run."""

    name: Literal["log_uniform"] = option("log_uniform", "the schedule of lengths")
    low: int = option(20, "fewest inner steps of a run", ge=1, le=1_000_000)
    high: int = option(500, "most inner steps of a run", ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _ends_ascend(self) -> LogUniform:
        if self.low > self.high:
            raise ValueError(f"low {self.low} should be at most high {self.high}")
        return self

    @property
    def longest(self) -> int:
        return self.high

    @property
    def shortest(self) -> int:
        return self.low

    def draw(self, key: Key, dtype: torch.dtype) -> Tensor:
        """[]"""
        low, high = math.log(self.low), math.log(self.high)
        return rng.uniform(key, (), low, high, dtype=dtype).exp()


Horizon = Annotated[Constant | LogUniform, Field(discriminator="name")]
HORIZONS: dict[str, type[Component]] = {"constant": Constant, "log_uniform": LogUniform}


def in_windows(steps: Tensor, unroll: int) -> Tensor:
    """A length [] as the next whole number of windows: at least one."""
    return unroll * (steps / unroll - 1e-4).ceil().clamp(
        min=1
    )  # the little taken off keeps 100 / 20 at 5


def first_length(horizon: Tensor, key: Key, unroll: int) -> Tensor:
    """A part of the horizon [], uniform over its windows: lanes that begin together end apart."""
    windows = horizon / unroll
    return unroll * (rng.uniform(key, (), dtype=horizon.dtype) * windows).floor().clamp(min=0).add(
        1
    )
