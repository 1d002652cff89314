"""Rings of points in the plane: a task source."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

import metalearn as ml
from metalearn.rng import choice, fold_in, integers, normal, uniform
from metalearn.tasks.generated import GeneratedSource, GeneratedTask
from metalearn.types import Batch, Episode, EpisodeSpec

PLACES = {"train": 0, "valid": 1000, "test": 2000}  # the first class of a split


class RingsSource(GeneratedSource):
    """A class is a ring with a centre and a radius of its own; examples are noisy points on it."""

    def sample(self, key: Tensor, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, N*K, 2], support.y [T, N*K]; query alike."""
        spec, keys = self.spec, self.keys(key, num_tasks, start)  # [T]
        classes = choice(fold_in(keys, "classes"), spec.num_classes, spec.ways)  # [T, N]
        sets = []
        for name, count in (("support", spec.shots), ("query", spec.queries)):
            y = torch.arange(spec.ways).repeat(count)
            order = uniform(fold_in(keys, name, "order"), (len(y),)).argsort(-1)
            y = y.expand(num_tasks, -1).gather(1, order)
            sets.append(Batch(self._points(fold_in(keys, name), classes.gather(1, y)), y))
        return Episode(
            *sets,
            {"key": keys, "step": torch.zeros_like(keys, dtype=spec.dtype), "class_ids": classes},
        )

    def examples(self, key: Tensor, size: int) -> Batch:
        """x [B, 2], y [B] over all classes of the split."""
        y = integers(fold_in(key, "y"), (size,), self.spec.num_classes)
        return Batch(self._points(fold_in(key, self.spec.split)[None], y[None])[0], y)

    def _points(self, keys: Tensor, classes: Tensor) -> Tensor:
        """Points [T, M, 2] of classes [T, M]."""
        dtype, count = self.spec.dtype, classes.shape[-1]
        ring = fold_in(fold_in(0, "ring"), classes + PLACES[self.spec.split])  # [T, M]
        centre, radius = (
            normal(ring, (2,), dtype),
            0.2 + uniform(fold_in(ring, "r"), (1,), dtype=dtype),
        )
        angle = 6.2831853 * uniform(fold_in(keys, "angle"), (count, 1), dtype=dtype)
        noise = 0.03 * normal(fold_in(keys, "noise"), (count, 2), dtype)
        return centre + radius * torch.cat([angle.cos(), angle.sin()], -1) + noise


class Rings(GeneratedTask):
    """Classification of points of the plane by the ring that they lie on."""

    default_model: ClassVar[str] = "mlp"
    source: Literal["rings"] = ml.option("rings", "The task source.")
    ways: int = ml.option(3, "N, rings of a task.", ge=2, le=100)
    shots: int = ml.option(5, "K, labelled points of each ring.", ge=1)
    queries: int = ml.option(10, "Points of each ring to be answered.", ge=0)

    def source_of(self, **where: Any) -> RingsSource:
        """The tasks of a split; `where` holds split, dtype and device."""
        return RingsSource(
            EpisodeSpec(
                kind="classification",
                ways=self.ways,
                shots=self.shots,
                queries=self.queries,
                x_shape=(2,),
                outputs=self.ways,
                num_classes=1000,
                **where,
            )
        )
