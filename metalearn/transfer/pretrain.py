"""Pretraining on examples of all training classes, which every method of this room but `scratch`
begins with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.heads import fresh_linear, is_head, linear
from metalearn.inner.method import begin, outer_update, stats_gradient, step_on_examples
from metalearn.inner.rules import momentum, sgd
from metalearn.losses import criterion, metrics
from metalearn.rng import fold_in
from metalearn.tree import partition
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Grads,
    Key,
    Learned,
    Learner,
    Meta,
    MetaState,
    Method,
    Metrics,
    Params,
    Traits,
    UpdateRule,
)

HEAD = "pretrain_head"


class Head(NamedTuple):
    """A last layer: how it starts and what it says."""

    init: Callable[
        [Key, int, Tensor], Params
    ]  # (key, outputs, like [*, D]) -> leaves under head.weight, ...
    apply: Callable[[Params, Tensor], Tensor]  # (leaves, z [B, D]) -> [B, C]


LINEAR = Head(fresh_linear, linear)


def start_meta(learner: Learner, spec: EpisodeSpec, head: Head, key: Key) -> Meta:
    """The meta before pretraining.

    Classes: `params`, the body alone, and `pretrain_head` over all classes of the split; the
    learner's own head, which has one output a way, would be dead weight. Regression: `params`, the
    whole learner, as the outputs stay the same."""
    params = learner.init(key)
    if not spec.classification:
        return {"params": params}
    if spec.num_classes < 2:
        text = (
            f"says {spec.num_classes}: pretraining needs it to count the classes of the "
            f"training split, at least 2"
        )
        raise ConfigError(("task.num_classes", text))
    old, body = partition(params, is_head)
    like = old["head.weight"]
    fresh = head.init(fold_in(key, HEAD), spec.num_classes, like)
    return {"params": body, HEAD: {name: value.to(like.device) for name, value in fresh.items()}}


def example_gradient(
    learner: Learner, spec: EpisodeSpec, head: Head
) -> Callable[[Meta, Batch], tuple[Grads, Metrics]]:
    """Gradient and metrics of the mean loss of one batch: x [B, *X], y [B] over all classes of the
    split | [B, C].

    The metrics are `query_loss` and `query_accuracy`, named as in meta-training: loss on the
    examples in hand. Running statistics move by what `stats_gradient` says.
    """
    loss_of = criterion(spec)

    def loss(meta: Meta, batch: Batch) -> tuple[Tensor, Metrics]:
        params, (x, y) = meta["params"], batch
        said = (
            head.apply(meta[HEAD], learner.features(params, x))
            if spec.classification
            else learner.apply(params, x)
        )
        return loss_of(said, y), metrics(spec, said, y)

    def gradient(meta: Meta, batch: Batch) -> tuple[Grads, Metrics]:
        grads, found = torch.func.grad(loss, has_aux=True)(meta, batch)
        return stats_gradient(learner, lambda tree: tree["params"], meta, grads, batch.x), found

    return gradient


def pretrained(
    learner: Learner,
    spec: EpisodeSpec,
    outer: UpdateRule,
    learn: Callable[..., Learned],
    head: Head = LINEAR,
    traits: Traits | None = None,
) -> Method:
    """A Method that learns from batches of examples across tasks, and from a support set by
    `learn`.

    `learn` reads nothing of the number of training classes, so the method built for a test split
    takes the same meta."""
    update = outer_update(outer)
    grad = example_gradient(learner, spec, head)

    def init(key: Key) -> MetaState:
        return begin(start_meta(learner, spec, head, key), outer)

    return Method(
        spec=spec,
        traits=traits or traits_of(learner),
        init=init,
        learn=learn,
        update=update,
        step=step_on_examples(grad, update),
    )


def traits_of(
    learner: Learner, *, uses_steps: bool = True, support_at_step_0: bool = False
) -> Traits:
    """Traits of a method that consumes examples."""
    return Traits(
        consumes="examples",
        uses_steps=uses_steps,
        support_at_step_0=support_at_step_0,
        transductive=learner.normalisation == "query_batch",
        normalisation=learner.normalisation,
    )


def descent(lr: float, decay: float) -> UpdateRule:
    """The rule that learns a new task: plain gradient descent where `decay` is 0, else with
    heavy-ball momentum.
    """
    return momentum(lr, decay) if decay else sgd(lr)


def refuse_regression(name: str, spec: EpisodeSpec) -> None:
    """ConfigError where a method that compares classes is built for a regression task."""
    if not spec.classification:
        text = (
            f"{name} compares classes and this task is regression: use fine_tune, "
            f"linear_probe or scratch"
        )
        raise ConfigError(("method.name", text))
