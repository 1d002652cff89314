"""Sinusoids and lines (Finn, Xu & Levine 2018, arXiv:1806.02817, section 5)."""

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
from metalearn.types import Episode, EpisodeSpec, Key


class SinusoidLineSource(PointSource):
    """y = amplitude * sin(x - phase) + slope * x + intercept + noise.

    The amplitude and phase of a line are 0, and so are the slope and intercept of a sinusoid."""

    names = ("sinusoid", "line")  # of the kinds of tasks, by info["source"]
    parameters = ("amplitude", "phase", "slope", "intercept", "line")

    def __init__(self, options: SinusoidLine, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, K, 1], support.y [T, K, 1], query [T, Q, 1].

        info [T]: key, step, amplitude, phase, slope, intercept; `source`, the kind by its index in
        `names`."""
        episode = super().sample(key, num_tasks, start)
        info = dict(episode.info)
        info["source"] = info.pop("line").to(torch.int64)
        return episode._replace(info=info)

    def _points(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, y [T, count, 1] and the parameters [T, 5]; `line` is 1 for lines, 0 for sinusoids."""
        options, dtype = self._options, self.spec.dtype
        u = rng.uniform(keys, (5 + count,), dtype=dtype)
        line = (u[:, :1] < options.lines).to(dtype)  # [T, 1]
        ranges = (options.amplitude, options.phase, options.slope, options.intercept)
        uses = torch.cat([1 - line, 1 - line, line, line], -1)
        values = in_ranges(u[:, 1:5], ranges) * uses
        amplitude, phase, slope, intercept = (part.unsqueeze(-1) for part in values.unbind(-1))
        x = options.x[0] + (options.x[1] - options.x[0]) * u[:, 5:]
        y = amplitude * (x - phase).sin() + slope * x + intercept
        y = with_noise(y, keys, options.noise)
        return x.unsqueeze(-1), y.unsqueeze(-1), torch.cat([values, line], -1)


class SinusoidLine(GeneratedTask):
    """Regression on tasks of two kinds, each a sinusoid or a line with equal probability.

    y = amplitude * sin(x - phase) + noise,  or  y = slope * x + intercept + noise,  noise normal
    with standard deviation 0.3 (Finn, Xu & Levine 2018, arXiv:1806.02817, section 5, illustrative
    5-shot regression: few points with noise leave both kinds possible). result.json has the scores
    of each kind under `by_source`.

    >>> source = ml.tasks.SinusoidLine(shots=5).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1])
    """

    default_model: ClassVar[str] = "mlp"

    source: Literal["sinusoid_line"] = option("sinusoid_line", "The task source.")
    ways: Literal[1] = option(1, "Always 1: regression has no classes.")
    shots: int = option(5, "K, number of support points.", ge=1, le=100_000)
    queries: int = option(10, "Q, number of query points.", ge=0, le=100_000)
    lines: float = option(0.5, "Probability that a task is a line.", ge=0, le=1)
    amplitude: Range = option((0.1, 5.0), "Range of the amplitude of a sinusoid.")
    phase: Range = option((0.0, math.pi), "Range of the phase of a sinusoid, in radians.")
    slope: Range = option((-3.0, 3.0), "Range of the slope of a line.")
    intercept: Range = option((-3.0, 3.0), "Range of the intercept of a line.")
    x: Range = option((-5.0, 5.0), "Range of the inputs.")
    noise: float = option(0.3, "Standard deviation of normal noise on y.", ge=0)

    @model_validator(mode="after")
    def _check_ranges(self) -> SinusoidLine:
        check_ranges(self, "amplitude", "phase", "slope", "intercept", "x")
        return self

    def source_of(self, **where: Any) -> SinusoidLineSource:
        return SinusoidLineSource(self, self.spec_of((1,), **where))
