"""Pretraining on examples of all training classes: the first half of transfer methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.heads import fresh_linear, is_head, linear
from metalearn.inner.method import (
    LearnFunctions,
    init_state,
    make_step_on_examples,
    make_traits,
    make_update,
)
from metalearn.inner.requirements import require_head
from metalearn.inner.rules import Rule, momentum, sgd
from metalearn.inner.statistics import add_stats_delta, stats_delta
from metalearn.losses import criterion, metrics
from metalearn.padding import padding_scope, zero_padding
from metalearn.rng import fold_in
from metalearn.scopes.running_statistics import training_scope
from metalearn.tree import partition
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Grads,
    Key,
    Learner,
    Meta,
    Method,
    Metrics,
    Params,
    UpdateRule,
)

HEAD = "pretrain_head"
RULE = (
    "Update rule on a new task, with its own lr; null: gradient descent with inner_lr and "
    "inner_momentum."
)


class Head(NamedTuple):
    """A last layer as two functions: initialization and outputs."""

    init: Callable[[Key, int, Tensor], Params]  # (key, outputs, like [*, D]) -> head.weight, ...
    apply: Callable[[Params, Tensor], Tensor]  # (leaves, z [B, D]) -> [B, C]


LINEAR = Head(fresh_linear, linear)


def start_meta(learner: Learner, spec: EpisodeSpec, head: Head, key: Key) -> Meta:
    """Return the meta-parameters before pretraining.

    Classification: `params`, the body only, and `pretrain_head` over all classes of the split; the
    learner's own head, with one output per way, would not be used. Regression: `params`, the whole
    learner, as the outputs stay the same."""
    params = learner.init(key)
    if not spec.classification:
        return {"params": params}
    if spec.num_classes < 2:
        text = (
            f"must be the number of classes of the training split, at least 2 (got "
            f"{spec.num_classes})"
        )
        raise ConfigError(("task.num_classes", text))
    old_head, body = partition(params, is_head)
    like = old_head["head.weight"]
    new_head = head.init(fold_in(key, HEAD), spec.num_classes, like)
    return {"params": body, HEAD: {name: value.to(like.device) for name, value in new_head.items()}}


def example_gradient(
    learner: Learner, spec: EpisodeSpec, head: Head
) -> Callable[[Meta, Batch], tuple[Grads, Metrics]]:
    """Return a function: gradient and metrics of the mean loss of a batch, over all classes.

    The metrics are `query_loss` and `query_accuracy`, named as in meta-training: the loss on the
    current batch. Running statistics have their change instead of a gradient.
    """
    loss_of = criterion(spec)

    def loss(meta: Meta, batch: Batch) -> tuple[Tensor, tuple[Metrics, Params]]:
        params, x, y, weight = meta["params"], batch.x, batch.y, batch.weight
        with padding_scope(weight), training_scope() as scope:
            logits = (
                head.apply(meta[HEAD], learner.features(params, x))
                if spec.classification
                else learner.apply(params, x)
            )
        batch_metrics = metrics(spec, logits, y, weight)
        return loss_of(logits, y, weight), (batch_metrics, stats_delta(scope, meta))

    def gradient(meta: Meta, batch: Batch) -> tuple[Grads, Metrics]:
        batch = zero_padding(batch)
        grads, (batch_metrics, delta) = torch.func.grad(loss, has_aux=True)(meta, batch)
        return add_stats_delta(grads, delta), batch_metrics

    return gradient


def pretrained(
    learner: Learner,
    spec: EpisodeSpec,
    outer: UpdateRule,
    learning: LearnFunctions,
    head: Head = LINEAR,
    *,
    uses_steps: bool = True,
) -> Method:
    """Build a Method that is pretrained on batches of examples and learns a task by `learning`.

    `learning` does not depend on the number of training classes, so the method built for a test
    split accepts the same meta.
    """
    if spec.classification:
        require_head("pretraining", learner)
    update = make_update(outer)
    return Method(
        spec,
        make_traits(learner, consumes="examples", steps=uses_steps),
        lambda key: init_state(start_meta(learner, spec, head, key), outer),
        *learning,
        update=update,
        step=make_step_on_examples(
            example_gradient(learner, spec, head), update, spec, draws_noise=learner.draws_noise
        ),
    )


def gradient_descent(lr: float, decay: float) -> UpdateRule:
    """Return gradient descent, with heavy-ball momentum if `decay` is not 0."""
    return momentum(lr, decay) if decay else sgd(lr)


def build_inner_rule(inner: Rule | None, lr: float, decay: float) -> UpdateRule:
    """Build the update rule of a new task: `inner` if it is set, else `gradient_descent`."""
    return gradient_descent(lr, decay) if inner is None else inner.build()
