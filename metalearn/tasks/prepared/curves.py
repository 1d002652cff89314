"""Regression on measured curves: a task is one curve, its examples are random points of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.tasks.generated import GeneratedSource
from metalearn.tasks.images import SplitTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key


class CurveSource(GeneratedSource, ABC):
    """K + Q different points of one curve of `count`, each curve as likely."""

    def __init__(self, spec: EpisodeSpec, count: int, points: int, data_sha256: str) -> None:
        super().__init__(spec)
        self.count, self.points, self.data_sha256 = count, points, data_sha256
        self.groups, self.facts = count, dict[str, Any]()

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support x [T, K, *X], y [T, K, 1], query [T, Q, ...]; info: key, step, curve [T]."""
        shots, spec = self.spec.shots, self.spec
        keys = self.keys(key, num_tasks, start)
        x, y, curve = self._sample_points(keys, shots + spec.queries)
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=spec.device)
        info = {"key": keys, "step": step, "curve": curve}
        return Episode(Batch(x[:, :shots], y[:, :shots]), Batch(x[:, shots:], y[:, shots:]), info)

    def examples(self, key: Key, size: int) -> Batch:
        """One point of each of `size` curves: x [B, *X], y [B, 1]."""
        x, y, _ = self._sample_points(self.keys(rng.fold_in(key, "examples"), size), 1)
        return Batch(x[:, 0], y[:, 0])

    def _sample_points(self, keys: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        curve = rng.integers(rng.fold_in(keys, "curve"), (1,), self.count).squeeze(-1)
        order = rng.uniform(rng.fold_in(keys, "points"), (self.points,), dtype=torch.float64)
        x, y = self.values(keys, curve, order.argsort(-1)[:, :number])
        return x.to(self.spec.dtype), y.to(self.spec.dtype).unsqueeze(-1), curve

    @abstractmethod
    def values(self, keys: Tensor, curve: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs [T, B, *X] and values [T, B] of curves [T] at `index` [T, B]."""


def curve_spec(task: SplitTask, points: int, inputs: int, **where: Any) -> EpisodeSpec:
    """Return the spec of a curve; raises ConfigError if it has fewer points than needed."""
    spec = task.spec_of((inputs,), **where)
    shots, queries = spec.shots, spec.queries
    if shots + queries > points:
        text = f"{shots} shots + {queries} queries = {shots + queries} different points"
        raise ConfigError(("shots", f"{text}, but a curve has {points}"))
    return spec
