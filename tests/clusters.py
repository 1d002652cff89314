"""A small transfer problem for tests: classes that differ in a few numbers under loud noise, and
methods for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.inner.heads import fresh_linear
from metalearn.models.mlp import MLP
from metalearn.rng import choice, fold_in, integers, normal
from metalearn.transfer import TRANSFER
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method

WIDTH = 6
SIGNAL = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)
STEPS = (0, 1, 2, 5)
PRETRAINED = [name for name in TRANSFER if name != "scratch"]
OF_REGRESSION = ["scratch", "fine_tune", "linear_probe"]
POLICIES = ["none", "query_batch", "support", "support_plus_one", "running"]


class Clusters:
    """Classes differ in the first half of WIDTH numbers, the rest is loud noise; other classes in
    every split.
    """

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
        return Episode(*parts, {"key": keys, "class_ids": classes})

    def examples(self, key: Key, size: int) -> Batch:
        y = integers(fold_in(key, "y"), (size,), self.spec.num_classes)
        noise = normal(fold_in(key, "x"), (size, WIDTH), self.spec.dtype)
        return Batch(self.centres[y] + noise * (2.5 - 2 * SIGNAL), y)


def scaling(spec: EpisodeSpec) -> Learner:
    """A learner whose features are its inputs, times one number."""

    def init(key: Key) -> dict[str, Tensor]:
        return {
            "scale": torch.ones((), dtype=spec.dtype),
            **fresh_linear(key, spec.outputs, spec_like(spec)),
        }

    def features(params: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
        return params["scale"] * x

    def apply(params: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
        return F.linear(features(params, x), params["head.weight"], params["head.bias"])

    return Learner(
        init, features, apply, lambda params, x: params, "none", spec.outputs, spec.x_shape
    )


def spec_like(spec: EpisodeSpec) -> Tensor:
    return torch.zeros(spec.x_shape[0], dtype=spec.dtype)


def make(name: str, spec: EpisodeSpec, norm: str = "none", **options: Any) -> Method:
    learner = MLP(sizes=(8, 7), activation="tanh", norm=norm).build(spec)
    return TRANSFER[name](**options).build(learner, spec)


def predictions_of(
    method: Method, meta: Meta, episode: Episode, steps: Any = STEPS, key: Key | None = None
) -> Tensor:
    predictions: Tensor = method.learn(
        meta, episode.support, episode.query.x, steps, key=key
    ).predictions
    return predictions


def of_task(task: int, episode: Episode) -> Episode:
    part = slice(task, task + 1)
    return Episode(*(Batch(b.x[part], b.y[part]) for b in episode[:2]), {})


def after(
    method: Method, source: Any, steps: int, size: int = 64, seed: int = 0
) -> tuple[Any, list[dict[str, Tensor]]]:
    """The state after pretraining, and every step's metrics."""
    state, rows = method.init(fold_in(seed, "init")), []
    assert method.step is not None
    for step in range(steps):
        state, found = method.step(state, source.examples(fold_in(seed, "train", step), size))
        rows.append(found)
    return state, rows
