"""Tasks that are sampled from a distribution, not from data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from metalearn import rng
from metalearn.tasks.images import SplitTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key


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


class GeneratedTask(SplitTask):
    """A distribution of tasks, of which every split has others."""

    @abstractmethod
    def source_of(self, **where: Any) -> GeneratedSource:
        """The source; `where` holds the fields `split`, `device` and `dtype` of its spec."""
