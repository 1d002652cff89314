"""Tasks that are sampled from a distribution, not from data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from metalearn import rng
from metalearn.tasks.images import SplitTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key

Range = tuple[float, float]


class GeneratedSource(ABC):
    """Tasks of a distribution; all random numbers of task t are a function of (key, start + t)."""

    data_sha256 = ""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.spec = spec

    def keys(self, key: Key, num_tasks: int, start: int = 0) -> Tensor:
        """Return the keys of tasks start .. start + T - 1, different in every split: [T]."""
        index = torch.arange(start, start + num_tasks, device=self.spec.device)
        return rng.fold_in(key.to(self.spec.device), self.spec.split, index)

    def on_cpu(self) -> Self:
        """Return the source of the same tasks on the CPU."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):  # measured curves
                setattr(twin, name, value.cpu())
        twin.spec = replace(self.spec, device="cpu")
        return twin

    @abstractmethod
    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Return episodes of tasks start .. start + T - 1; leaves [T, ...]."""

    def examples(self, key: Key, size: int) -> Batch:
        """Return the first example of each of `size` new tasks: x [B, *X], y [B, ...]."""
        batch = self.sample(rng.fold_in(key, "examples"), size).support
        return Batch(batch.x[:, 0], batch.y[:, 0])


class PointSource(GeneratedSource):
    """Regression on points (x, y) of a function of one number, another function in each task."""

    parameters: ClassVar[tuple[str, ...]] = ()  # names of the parameters of the function

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, K, 1], support.y [T, K, 1], query [T, Q, 1].

        info [T]: key, step and the parameters of the task's function."""
        shots, keys = self.spec.shots, self.keys(key, num_tasks, start)
        x, y, values = self._points(keys, shots + self.spec.queries)
        info = {"key": keys, "step": torch.zeros_like(values[:, 0])}
        info |= dict(zip(self.parameters, values.unbind(-1), strict=True))
        return Episode(Batch(x[:, :shots], y[:, :shots]), Batch(x[:, shots:], y[:, shots:]), info)

    def examples(self, key: Key, size: int) -> Batch:
        """One point of each of `size` new tasks: x [B, 1], y [B, 1]."""
        x, y, _ = self._points(self.keys(key, size), 1)
        return Batch(x[:, 0], y[:, 0])

    @abstractmethod
    def _points(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, y [T, count, 1] and the parameters of the functions of tasks with keys [T]: [T, n]."""


class GeneratedTask(SplitTask):
    """A distribution of tasks, of which every split has others."""

    @abstractmethod
    def source_of(self, **where: Any) -> GeneratedSource:
        """The source; `where` holds the fields `split`, `device` and `dtype` of its spec."""


def in_ranges(u: Tensor, ranges: Sequence[Range]) -> Tensor:
    """Numbers uniform on `ranges` from u uniform on [0, 1): [..., n] -> [..., n]."""
    low, high = (torch.tensor(ends, dtype=u.dtype) for ends in zip(*ranges, strict=True))
    return low.to(u.device) + (high - low).to(u.device) * u


def with_noise(y: Tensor, keys: Tensor, deviation: float) -> Tensor:
    """Add normal noise of a standard deviation to values [T, B], from the keys [T] of tasks."""
    if not deviation:
        return y
    noise = rng.normal(rng.fold_in(keys, "noise"), y.shape[1:], dtype=y.dtype)
    return y + deviation * noise


def check_ranges(component: GeneratedTask, *names: str) -> None:
    """Raise ValueError for fields that are ranges [low, high] with low > high."""
    values = dict(component)
    bad = [name for name in names if values[name][0] > values[name][1]]
    if bad:
        raise ValueError(f"{', '.join(bad)}: a range must be [low, high] with low <= high")
