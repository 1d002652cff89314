"""Lengths of inner runs during meta-training."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import Component, OneOf, option
from metalearn.types import Key


class HorizonComponent(Component):
    """The options of a distribution of lengths."""

    name: str

    @property
    @abstractmethod
    def longest(self) -> int:
        """The largest length, in steps."""

    @property
    def fixed(self) -> bool:
        """Return whether every inner run has the same length."""
        return False

    @abstractmethod
    def draw(self, key: Key, dtype: torch.dtype) -> Tensor:
        """Sample one length: []."""


class Constant(HorizonComponent):
    """Every inner run has the same number of steps.

    >>> ml.learned_optimizers.Constant(steps=100).draw(ml.fold_in(0), torch.float32)
    tensor(100.)
    """

    name: Literal["constant"] = option("constant", "The schedule of horizons.")
    steps: int = option(100, "Inner steps per run.", ge=1, le=1_000_000)

    @property
    def longest(self) -> int:
        return self.steps

    @property
    def fixed(self) -> bool:
        return True

    def draw(self, key: Key, dtype: torch.dtype) -> Tensor:
        return torch.full((), self.steps, dtype=dtype, device=key.device)


class LogUniform(HorizonComponent):
    """The number of steps of each inner run is sampled log-uniformly between two bounds.

    >>> horizon = ml.learned_optimizers.LogUniform(low=20, high=500)
    >>> horizon.draw(ml.fold_in(0), torch.float32).round()
    tensor(343.)
    """

    name: Literal["log_uniform"] = option("log_uniform", "The schedule of horizons.")
    low: int = option(20, "Minimum number of inner steps per run.", ge=1, le=1_000_000)
    high: int = option(500, "Maximum number of inner steps per run.", ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _check_bounds(self) -> LogUniform:
        if self.low > self.high:
            raise ValueError(f"low must be <= high (got {self.low} and {self.high})")
        return self

    @property
    def longest(self) -> int:
        return self.high

    def draw(self, key: Key, dtype: torch.dtype) -> Tensor:
        low, high = math.log(self.low), math.log(self.high)
        return rng.uniform(key, (), low, high, dtype=dtype).exp()


HORIZONS: dict[str, type[HorizonComponent]] = {"constant": Constant, "log_uniform": LogUniform}
Horizon = Annotated[Constant | LogUniform, OneOf(HORIZONS, HorizonComponent, "horizon")]


def round_up_to_windows(steps: Tensor, unroll: int) -> Tensor:
    """Round a length [] up to whole windows, at least one."""
    # The subtrahend keeps 100 / 20 at 5 windows under rounding errors.
    return unroll * (steps / unroll - 1e-4).ceil().clamp(min=1)


def staggered_length(horizon: Tensor, key: Key, unroll: int) -> Tensor:
    """Sample a length [], uniform over the windows of the horizon, to stagger the ends of runs."""
    windows = horizon / unroll
    index = (rng.uniform(key, (), dtype=horizon.dtype) * windows).floor()
    return unroll * index.clamp(min=0).add(1)
