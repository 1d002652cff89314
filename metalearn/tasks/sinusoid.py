"""Sinusoid regression (Finn, Abbeel & Levine 2017, section 5.1) and its variants."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.tasks.generated import GeneratedSource, GeneratedTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key

Range = tuple[float, float]


class SinusoidSource(GeneratedSource):
    """y = amplitude * sin(frequency * x - phase) + noise."""

    def __init__(self, options: Sinusoid, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, K, 1], support.y [T, K, 1], query [T, Q, 1].

        info [T]: key, step, amplitude, phase, frequency."""
        shots, keys = self.spec.shots, self.keys(key, num_tasks, start)
        x, y, wave_params = self._points(keys, shots + self.spec.queries)
        info = {"key": keys, "step": torch.zeros_like(wave_params[:, 0])}
        info |= dict(zip(("amplitude", "phase", "frequency"), wave_params.unbind(-1), strict=True))
        return Episode(Batch(x[:, :shots], y[:, :shots]), Batch(x[:, shots:], y[:, shots:]), info)

    def examples(self, key: Key, size: int) -> Batch:
        """One point of each of `size` new tasks: x [B, 1], y [B, 1]."""
        x, y, _ = self._points(self.keys(key, size), 1)
        return Batch(x[:, 0], y[:, 0])

    def _points(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, y [T, count, 1] and amplitude, phase, frequency [T, 3]."""
        options, spec = self._options, self.spec
        u = rng.uniform(keys, (3 + count,), dtype=spec.dtype)
        ranges = zip(options.amplitude, options.phase, options.frequency)  # lows, then highs
        low, high = (torch.tensor(ends, dtype=spec.dtype) for ends in ranges)
        wave_params = low.to(spec.device) + (high - low).to(spec.device) * u[:, :3]
        amplitude, phase, frequency = (column.unsqueeze(-1) for column in wave_params.unbind(-1))
        x = options.x[0] + (options.x[1] - options.x[0]) * u[:, 3:]
        y = amplitude * torch.sin(frequency * x - phase)
        if options.noise:
            noise = rng.normal(rng.fold_in(keys, "noise"), (count,), dtype=spec.dtype)
            y = y + options.noise * noise
        return x.unsqueeze(-1), y.unsqueeze(-1), wave_params


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
        values = dict(self)
        names = ("amplitude", "phase", "frequency", "x")
        bad = [name for name in names if values[name][0] > values[name][1]]
        if bad:
            raise ValueError(f"{', '.join(bad)}: a range must be [low, high] with low <= high")
        return self

    def source_of(self, **where: Any) -> SinusoidSource:
        return SinusoidSource(self, self.spec_of((1,), **where))
