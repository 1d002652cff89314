"""Methods that learn features alone: what is made of those of a support set answers queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.inner.method import StepIndices, episodic, make_step_over_tasks, make_task_grad
from metalearn.inner.statistics import params_of
from metalearn.losses import criterion, metrics
from metalearn.padding import class_mask_of, mask_absent_classes, padding_scope, zero_padding
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Key,
    Learner,
    Meta,
    Method,
    Metrics,
    Params,
    UpdateRule,
)

Fit = Callable[[Meta, Tensor, Batch], Any]  # (meta, z [B, D], support) -> what `answer` needs
Answer = Callable[[Meta, Any, Batch, Tensor], Tensor]  # (meta, item, support, z [M, D]) -> [M, C]


def embedding(
    learner: Learner,
    spec: EpisodeSpec,
    outer: UpdateRule,
    fit: Fit,
    answer: Answer,
    *,
    init: Callable[[Key], Meta] | None = None,
    loss_of: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    one_pass: bool = True,
) -> Method:
    """A method without inner steps made of two functions of features z = f(x) of one task.

    minimise over meta the mean over tasks of L(answer(fit(f(support.x)), f(query.x)), y)

    `loss_of(outputs, y, weight)` is L (default: that of `spec`). With running statistics a training
    step normalises support and queries as one batch, or with `one_pass` False each by itself: as
    the authors do. The other policies always have two passes."""

    def adapt(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Any]:
        return [fit(meta, learner.features(params_of(meta), support.x), support)]

    def predict(meta: Meta, adapted: Any, support: Batch, query_x: Tensor) -> Tensor:
        z = learner.features(params_of(meta), query_x, context=support.x)
        return answer(meta, adapted, support, z)

    method = episodic(learner, spec, outer, adapt, predict, inner_steps=0, init=init)
    assert method.update is not None
    joint = one_pass and learner.normalisation == "running"
    outputs_of = _in_one_pass(learner, fit, answer) if joint else _in_two_passes(method)
    loss = loss_of or criterion(spec)

    def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query = zero_padding(episode.support), zero_padding(episode.query)
        outputs = outputs_of(meta, support, query, episode.info["key"])
        return loss(outputs, *query[1:]), metrics(spec, outputs, *query[1:])

    task_grad = make_task_grad(task_loss, learner)
    step = make_step_over_tasks(task_grad, method.update, spec)
    return method._replace(task_grad=task_grad, step=step)


def feature_width(learner: Learner, params: Params, spec: EpisodeSpec) -> int:
    """Return D, the width of the features, from zeros of the type that the network takes."""
    dtype = torch.int64 if learner.integers else spec.dtype
    x = torch.zeros(2, *spec.x_shape, dtype=dtype, device=spec.device)
    with torch.no_grad():
        return int(learner.features(params, x).shape[-1])


def _in_two_passes(method: Method) -> Callable[[Meta, Batch, Batch, Key], Tensor]:
    """(meta, support, query, key) -> outputs [M, C], as on a new task."""
    assert method.adapt is not None and method.predict is not None
    adapt, predict = method.adapt, method.predict

    def outputs_of(meta: Meta, support: Batch, query: Batch, key: Key) -> Tensor:
        item = adapt(meta, support, 0, key)
        return predict(meta, item, support, query.x, query.weight)

    return outputs_of


def _in_one_pass(
    learner: Learner, fit: Fit, answer: Answer
) -> Callable[[Meta, Batch, Batch, Key], Tensor]:
    """The same with the features of support and queries as those of one batch."""

    def outputs_of(meta: Meta, support: Batch, query: Batch, key: Key) -> Tensor:
        rows, parts = support.x.shape[0], (support, query)
        given = [p.x.new_ones(len(p.x)) if p.weight is None else p.weight for p in parts]
        weighted = any(part.weight is not None for part in parts)
        with padding_scope(torch.cat(given) if weighted else None):
            z = learner.features(params_of(meta), torch.cat([support.x, query.x]))
        outputs = answer(meta, fit(meta, z[:rows], support), support, z[rows:])
        return mask_absent_classes(outputs, class_mask_of(support, outputs.shape[-1]))

    return outputs_of
