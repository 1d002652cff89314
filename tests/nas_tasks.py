"""Small tasks for tests of architecture search: images of noisy prototypes, a space of numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metalearn.nas.spaces.space import Cost, Genotype, Place, Space
from metalearn.rng import choice, fold_in, normal
from metalearn.types import Batch, Episode, EpisodeSpec, Learner

F64 = torch.float64


def image_spec(shots: int = 2, side: int = 16, **changes: Any) -> EpisodeSpec:
    """3 ways, 2 queries a class, one channel, float64."""
    options = {
        "queries": 2,
        "x_shape": (1, side, side),
        "outputs": 3,
        "num_classes": 12,
        "dtype": F64,
        **changes,
    }
    return EpisodeSpec("classification", 3, shots, **options)


class Images:
    """Classes are prototypes of noise; labels of support and query come in a mixed order."""

    data_sha256 = ""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.spec = spec
        self.prototypes = normal(
            fold_in(3, spec.split), (spec.num_classes, *spec.x_shape), spec.dtype
        )

    def classes(self, keys: Tensor) -> Tensor:
        return choice(fold_in(keys, "classes"), self.spec.num_classes, self.spec.ways)

    def sample(self, key: Tensor, num_tasks: int, start: int = 0) -> Episode:
        spec = self.spec
        keys = fold_in(key, torch.arange(start, start + num_tasks))
        classes = self.classes(keys)
        parts = []
        for name, count in (("support", spec.shots), ("query", spec.queries)):
            order = choice(fold_in(keys, name, "order"), spec.ways * count, spec.ways * count)
            y = order % spec.ways  # [T, ways * count]
            noise = normal(fold_in(keys, name), (spec.ways * count, *spec.x_shape), spec.dtype)
            parts.append(Batch(self.prototypes[classes.gather(1, y)] + 0.7 * noise, y))
        return Episode(
            parts[0], parts[1], {"key": keys, "step": torch.zeros(num_tasks, dtype=spec.dtype)}
        )


class SameImages(Images):
    """Tasks that differ in their noise alone, so that learning across tasks helps."""

    def classes(self, keys: Tensor) -> Tensor:
        return torch.arange(self.spec.ways).expand(len(keys), -1)


def numbers_space(sizes: tuple[int, ...], merge: bool = False) -> Space:
    """A space without networks; with `merge` the last place does not matter."""
    places = tuple(
        Place(f"p{number}", tuple(map(str, range(size)))) for number, size in enumerate(sizes)
    )

    def canonical(genotype: Genotype) -> Genotype:
        return (*genotype[:-1], 0) if merge else genotype

    def cost(genotype: Genotype) -> Cost:
        return Cost(sum(genotype), 10 * sum(genotype))

    learner: Any = Learner(*(lambda *args: {} for _ in range(4)))
    spec = image_spec()
    return Space(
        "numbers",
        spec,
        places,
        canonical,
        learner,
        learner,
        lambda genotype: {},
        cost,
        (0,) * len(sizes),
    )


def hill(genotype: Genotype, sizes: tuple[int, ...]) -> float:
    """A landscape in which neighbours are similar, highest where every number is largest."""
    smooth = sum(choice / (size - 1) for choice, size in zip(genotype, sizes))
    return smooth + 0.05 * math.sin(
        37.0 * sum((place + 1) * choice for place, choice in enumerate(genotype))
    )
