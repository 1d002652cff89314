"""A small classification problem: classes that differ in a few numbers under strong noise."""

from __future__ import annotations

import torch

from metalearn.rng import choice, fold_in, integers, normal
from metalearn.types import Batch, Episode, EpisodeSpec, Key

WIDTH = 6
SIGNAL = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)


class Clusters:
    """Classes differ in the first half of WIDTH numbers; the rest is strong noise.

    Every split has other classes."""

    def __init__(self, split: str, classes: int, ways: int = 3, shots: int = 2) -> None:
        self.spec = EpisodeSpec(
            "classification",
            ways,
            shots,
            queries=4,
            x_shape=(WIDTH,),
            outputs=ways,
            num_classes=classes,
            split=split,
            dtype=torch.float64,
        )
        self.centres = 2 * normal(fold_in(3, split), (classes, WIDTH), torch.float64) * SIGNAL

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        spec = self.spec
        keys = fold_in(key, torch.arange(start, start + num_tasks))
        classes = choice(fold_in(keys, "classes"), spec.num_classes, spec.ways)
        parts = []
        for name, count in (("support", spec.shots), ("query", spec.queries)):
            y = torch.arange(spec.ways).repeat(count)
            noise = normal(fold_in(keys, name), (len(y), WIDTH), spec.dtype)
            x = self.centres[classes[:, y]] + noise * (2.5 - 2 * SIGNAL)
            parts.append(Batch(x.to(spec.dtype), y.expand(num_tasks, -1)))
        return Episode(parts[0], parts[1], {"key": keys, "class_ids": classes})

    def examples(self, key: Key, size: int) -> Batch:
        y = integers(fold_in(key, "y"), (size,), self.spec.num_classes)
        noise = normal(fold_in(key, "x"), (size, WIDTH), self.spec.dtype)
        return Batch(self.centres[y] + noise * (2.5 - 2 * SIGNAL), y)
