"""Harmonics: sums of two sine waves (Lacoste et al. 2018, arXiv:1806.07528)."""

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


class HarmonicSource(PointSource):
    """y = a_1 sin(frequency x + phase_1) + a_2 sin(2 frequency x + phase_2) + noise."""

    parameters = ("frequency", "phase_1", "phase_2", "centre", "amplitude_1", "amplitude_2")

    def __init__(self, options: Harmonics, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def _points(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, y [T, count, 1] and the parameters [T, 6]."""
        options, dtype = self._options, self.spec.dtype
        u = rng.uniform(keys, (4,), dtype=dtype)
        ranges = (options.frequency, options.phase, options.phase, options.centre)
        z = rng.normal(rng.fold_in(keys, "normal"), (2 + count,), dtype=dtype)
        values = torch.cat([in_ranges(u, ranges), options.amplitude * z[:, :2]], -1)
        columns = (column.unsqueeze(-1) for column in values.unbind(-1))
        frequency, phase_1, phase_2, centre, amplitude_1, amplitude_2 = columns
        x = centre + options.spread * z[:, 2:]
        angle = frequency * x
        y = amplitude_1 * (angle + phase_1).sin() + amplitude_2 * (2 * angle + phase_2).sin()
        return x.unsqueeze(-1), with_noise(y, keys, options.noise).unsqueeze(-1), values


class Harmonics(GeneratedTask):
    """Regression on sums of a sine wave and one of twice its frequency, around a centre.

    y = a_1 sin(w x + b_1) + a_2 sin(2 w x + b_2),  x normal with mean c and standard deviation 1;
    of each task  w uniform on [5, 7],  b_1, b_2 on [0, 2 pi],  c on [-4, 4],  a_1, a_2 standard
    normal (Lacoste et al. 2018, arXiv:1806.07528, in the form of torchmeta's `Harmonic`: no noise
    by default).

    >>> source = ml.tasks.Harmonics(shots=5).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1])
    """

    default_model: ClassVar[str] = "mlp"

    source: Literal["harmonics"] = option("harmonics", "The task source.")
    ways: Literal[1] = option(1, "Always 1: regression has no classes.")
    shots: int = option(10, "K, number of support points.", ge=1, le=100_000)
    queries: int = option(10, "Q, number of query points.", ge=0, le=100_000)
    frequency: Range = option(
        (5.0, 7.0), "Range of the frequency w, in radians per unit of x; the second wave has 2 w."
    )
    phase: Range = option((0.0, 2 * math.pi), "Range of each phase, in radians.")
    amplitude: float = option(
        1.0, "Standard deviation of the two amplitudes, normal with mean 0.", ge=0
    )
    centre: Range = option((-4.0, 4.0), "Range of the mean of a task's inputs.")
    spread: float = option(1.0, "Standard deviation of a task's inputs.", gt=0)
    noise: float = option(0.0, "Standard deviation of normal noise on y.", ge=0)

    @model_validator(mode="after")
    def _check_ranges(self) -> Harmonics:
        check_ranges(self, "frequency", "phase", "centre")
        return self

    def source_of(self, **where: Any) -> HarmonicSource:
        return HarmonicSource(self, self.spec_of((1,), **where))
