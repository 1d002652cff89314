"""Logistic regression on Gaussian features: a convex objective with labels, minibatches and
held-out examples.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.tasks.images import split_problem
from metalearn.types import Batch, Episode, EpisodeSpec, Key


class LogisticSource:
    """Labels of a random direction, some of them turned over; every draw of task t comes from (key,
    start + t).
    """

    data_sha256 = ""

    def __init__(self, options: Logistic, spec: EpisodeSpec) -> None:
        self.spec = spec
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """x [T, 2K, d], y [T, 2K] int64, query likewise; info: key, step. Classes are balanced only
        on average.
        """
        spec, options = self.spec, self._options
        index = torch.arange(start, start + num_tasks, device=spec.device)
        keys = rng.fold_in(key.to(spec.device), spec.split, index)
        held = 2 * options.shots
        count = held + 2 * options.queries
        reach = 0.5 * math.log(options.condition)
        scales = rng.uniform(
            rng.fold_in(keys, "scales"), (options.dims,), -reach, reach, dtype=spec.dtype
        ).exp()
        x = rng.normal(rng.fold_in(keys, "x"), (count, options.dims), spec.dtype)
        direction = rng.normal(rng.fold_in(keys, "direction"), (options.dims,), spec.dtype)
        side = (x @ direction.unsqueeze(-1)).squeeze(-1) > 0  # [T, count]
        turned = (
            rng.uniform(rng.fold_in(keys, "turned"), (count,), dtype=spec.dtype) < options.noise
        )
        x, y = x * scales.unsqueeze(-2), (side ^ turned).to(torch.int64)
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=spec.device)
        return Episode(
            Batch(x[:, :held], y[:, :held]),
            Batch(x[:, held:], y[:, held:]),
            {"key": keys, "step": step},
        )

    def examples(self, key: Key, size: int) -> Batch:
        """The first example of each of `size` fresh tasks: x [B, d], y [B]."""
        batch = self.sample(rng.fold_in(key, "examples"), size).support
        return Batch(batch.x[:, 0], batch.y[:, 0])


class Logistic(TaskComponent):
    """Logistic regression on random data; a network of the model section without hidden layers
    makes it convex.
    """

    default_model: ClassVar[str] = "mlp"

    source: Literal["logistic"] = option("logistic", "the task source")
    ways: Literal[2] = option(2, "always 2")
    shots: int = option(50, "half the number of training examples", ge=1, le=100_000)
    queries: int = option(50, "half the number of held-out examples", ge=0, le=100_000)
    dims: int = option(20, "d, features", ge=1, le=10_000)
    condition: float = option(1.0, "spread of the features' variances, largest over smallest", ge=1)
    noise: float = option(0.05, "share of labels that are turned over", ge=0, lt=0.5)

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LogisticSource:
        """A source; splits have the same distribution and different tasks, `seed` changes nothing
        here.
        """
        del seed
        if problems := split_problem(split):
            raise ConfigError(*problems)
        spec = EpisodeSpec(
            kind="classification",
            ways=2,
            shots=self.shots,
            queries=self.queries,
            x_shape=(self.dims,),
            outputs=2,
            num_classes=2,
            split=split,
            dtype=dtype,
            device=device,
        )
        return LogisticSource(self, spec)
