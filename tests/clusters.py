"""Methods for the small classification problem of metalearn.testing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.inner.heads import fresh_linear
from metalearn.models.mlp import MLP
from metalearn.rng import fold_in
from metalearn.testing.case import META_STEPS
from metalearn.testing.clusters import WIDTH, Clusters
from metalearn.transfer import TRANSFER
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method

__all__ = ["WIDTH", "Clusters"]
STEPS = (0, 1, 2, 5)
PRETRAINED = [name for name, kind in TRANSFER.items() if kind.family != "scratch"]
OF_REGRESSION = ["scratch", "fine_tune", "linear_probe"]
OF_REGRESSION += ["fine_tune_ensemble", "fine_tune_cross_validated"]
POLICIES = ["none", "query_batch", "support", "support_plus_one", "running"]


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
    meta_steps = META_STEPS if TRANSFER[name].needs_meta_steps else None
    return TRANSFER[name](**options).build(learner, spec, meta_steps)


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
