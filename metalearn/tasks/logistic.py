"""Logistic regression on Gaussian features: a convex objective with labels and minibatches."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch

from metalearn import rng
from metalearn.component import option
from metalearn.tasks.generated import GeneratedSource, GeneratedTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key


class LogisticSource(GeneratedSource):
    """Labels are the side of a random hyperplane; some of them are flipped."""

    def __init__(self, options: Logistic, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """x [T, 2K, d], y [T, 2K] int64, query likewise; info [T]: key, step.

        Classes are balanced only on average."""
        options, dtype = self._options, self.spec.dtype
        keys, dims, train = self.keys(key, num_tasks, start), options.dims, 2 * options.shots
        count, reach = train + 2 * options.queries, 0.5 * math.log(options.condition)
        scales = rng.uniform(rng.fold_in(keys, "scales"), (dims,), -reach, reach, dtype=dtype).exp()
        x = rng.normal(rng.fold_in(keys, "x"), (count, dims), dtype)
        direction = rng.normal(rng.fold_in(keys, "direction"), (dims,), dtype)
        side = (x @ direction.unsqueeze(-1)).squeeze(-1) > 0  # [T, count]
        flip = rng.uniform(rng.fold_in(keys, "turned"), (count,), dtype=dtype) < options.noise
        x, y = x * scales.unsqueeze(-2), (side ^ flip).to(torch.int64)
        info = {"key": keys, "step": torch.zeros(num_tasks, dtype=dtype, device=self.spec.device)}
        return Episode(Batch(x[:, :train], y[:, :train]), Batch(x[:, train:], y[:, train:]), info)


class Logistic(GeneratedTask):
    """Logistic regression on random data; convex for a model without hidden layers.

    >>> source = ml.tasks.Logistic().build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 100, 20])
    """

    default_model: ClassVar[str] = "mlp"

    source: Literal["logistic"] = option("logistic", "The task source.")
    ways: Literal[2] = option(2, "Always 2.")
    shots: int = option(50, "Half the number of training examples.", ge=1, le=100_000)
    queries: int = option(50, "Half the number of held-out examples.", ge=0, le=100_000)
    dims: int = option(20, "d, number of features.", ge=1, le=10_000)
    condition: float = option(
        1.0, "Ratio of the largest to the smallest variance of the features.", ge=1
    )
    noise: float = option(0.05, "Fraction of labels that are flipped.", ge=0, lt=0.5)

    def source_of(self, **where: Any) -> LogisticSource:
        return LogisticSource(self, self.spec_of((self.dims,), 2, **where))
