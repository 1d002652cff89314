"""Sinusoid regression (Finn, Abbeel & Levine 2017, section 5.1) and its variants."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.tasks.generated import (
    GeneratedTask,
    PointSource,
    Range,
    check_ranges,
    in_ranges,
    with_noise,
)
from metalearn.types import EpisodeSpec


class SinusoidSource(PointSource):
    """y = amplitude * sin(frequency * x - phase) + noise."""

    parameters = ("amplitude", "phase", "frequency")

    def __init__(self, options: Sinusoid, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def _points(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, y [T, count, 1] and amplitude, phase, frequency [T, 3]."""
        options = self._options
        u = rng.uniform(keys, (3 + count,), dtype=self.spec.dtype)
        waves = in_ranges(u[:, :3], (options.amplitude, options.phase, options.frequency))
        amplitude, phase, frequency = (column.unsqueeze(-1) for column in waves.unbind(-1))
        x = options.x[0] + (options.x[1] - options.x[0]) * u[:, 3:]
        y = with_noise(amplitude * torch.sin(frequency * x - phase), keys, options.noise)
        return x.unsqueeze(-1), y.unsqueeze(-1), waves


class Sinusoid(GeneratedTask):
    """Regression on sine waves of random amplitude and phase; frequency and noise are options.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1])
    """

    default_model: ClassVar[str] = "mlp"

    source: Literal["sinusoid"] = option("sinusoid", "The task source.")
    ways: Literal[1] = option(1, "Always 1: regression has no classes.")
    shots: int = option(10, "K, number of support points.", ge=1, le=100_000)
    queries: int = option(10, "Q, number of query points.", ge=0, le=100_000)
    amplitude: Range = option((0.1, 5.0), "Range of the amplitude.")
    phase: Range = option(
        (0.0, math.pi), "Range of the phase, in radians; Reptile's variant is [0, 2 pi]."
    )
    frequency: Range = option(
        (1.0, 1.0),
        "Range of the frequency, in radians per unit of x; Meta-SGD's variant varies it.",
    )
    x: Range = option((-5.0, 5.0), "Range of the inputs.")
    noise: float = option(0.0, "Standard deviation of normal noise on y.", ge=0)

    @model_validator(mode="after")
    def _check_ranges(self) -> Sinusoid:
        check_ranges(self, "amplitude", "phase", "frequency", "x")
        return self

    def source_of(self, **where: Any) -> SinusoidSource:
        return SinusoidSource(self, self.spec_of((1,), **where))
