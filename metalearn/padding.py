"""Padding of tasks with `Batch.weight`: which examples count in losses, means and statistics.

Tasks of different numbers of classes and shots have one shape in a batch: an example of weight 0
is padding. A class without an example in a task's support set is not a class of that task: its
output is left out of every softmax. A learner's functions have no argument for weights, so a scope
around the call holds them; no scope is open if no batch has weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.types import Batch, Key, Meta

FARTHEST = 5.0  # standard deviations at which standardised columns are clipped


class Padding(NamedTuple):
    """The weights of one forward pass; None: everything counts."""

    weight: Tensor | None = None  # [B] of the examples of the forward pass
    context: Tensor | None = None  # [K] of their support set
    class_mask: Tensor | None = None  # [C] 1 for the classes of the task's support set, else 0


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[Padding] = []
        self.statistics: list[Tensor | None] = []


_scopes, _NONE = _Scopes(), Padding()


def current() -> Padding:
    """Return the weights of the innermost scope."""
    return _scopes.open[-1] if _scopes.open else _NONE


@contextmanager
def padding_scope(
    weight: Tensor | None, context: Tensor | None = None, class_mask: Tensor | None = None
) -> Iterator[None]:
    """Context manager in which a forward pass and its support set have these weights."""
    _scopes.open.append(Padding(weight, context, class_mask))
    try:
        yield
    finally:
        _scopes.open.pop()


@contextmanager
def statistics_of(weight: Tensor | None) -> Iterator[None]:
    """Context manager in which normalisation takes statistics of examples with these weights."""
    _scopes.statistics.append(weight)
    try:
        yield
    finally:
        _scopes.statistics.pop()


def statistics_weight() -> Tensor | None:
    """Return weights [B] of the examples whose statistics normalise; None: equal weights."""
    return _scopes.statistics[-1] if _scopes.statistics else None


def weighted_moments(x: Tensor, weight: Tensor, channel: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean [channels], biased variance [channels], count []) over all axes but `channel`.

    mean = sum_b w_b x_b / sum_b w_b; an example of weight 0 has no effect, even if not finite."""
    axes = tuple(axis for axis in range(x.dim()) if axis != channel % x.dim())
    shape = [1] * x.dim()
    shape[channel] = -1
    w = weight.view(-1, *[1] * (x.dim() - 1))
    places = x.numel() // (x.shape[0] * x.shape[channel])
    count = weight.sum() * places
    masked = torch.where(w > 0, x, torch.zeros_like(x))
    mean = (w * masked).sum(axes) / count
    var = (w * (masked - mean.view(shape)).square()).sum(axes) / count
    return mean, var, count


def standardise(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ((x - mean) / std of each column, whether the column varies); clipped to [-5, 5].

    Mean and standard deviation are those of `context` [K, *X], default x itself, with the weights
    of the open scope (`padding_scope`); a column that is constant there becomes 0.
    x [B, *X] -> [B, F], [F]."""
    x = x.flatten(1)
    weight = current().weight if context is None else current().context
    base = x if context is None else context.flatten(1)
    weight = torch.ones_like(base[:, 0]) if weight is None else weight
    fraction = (weight / weight.sum()).unsqueeze(-1)  # [K, 1]
    mean = (fraction * base).sum(0)
    variance = (fraction * (base - mean).square()).sum(0)
    varies = variance > 1e-12 * mean.square() + 1e-30
    scale = torch.where(varies, variance, torch.ones_like(variance)).rsqrt()
    z = ((x - mean) * scale).clamp(-FARTHEST, FARTHEST)
    return torch.where(varies, z, torch.zeros_like(z)), varies


def _class_mask(batch: Batch, classes: int) -> Tensor:
    """Return [C] float, 1 for classes in y [B, *Y] int64 with an example of positive weight."""
    same = batch.y.unsqueeze(-1) == torch.arange(classes, device=batch.y.device)
    if batch.y.dim() > 1:
        same = same.flatten(1, -2).any(1)  # [B, C]
    if batch.weight is None:
        return same.any(0).to(torch.get_default_dtype())
    counts = batch.weight.unsqueeze(-1) * same.to(batch.weight.dtype)
    return (counts.amax(0) > 0).to(batch.weight.dtype)


def mask_absent_classes(logits: Tensor, class_mask: Tensor | None) -> Tensor:
    """Lower the logits [..., C] of absent classes so that their probability is 0."""
    if class_mask is None:
        return logits
    lowest = torch.finfo(logits.dtype).min / 4
    return torch.where(class_mask > 0, logits, torch.full_like(logits, lowest))


def class_mask_of(support: Batch, outputs: int) -> Tensor | None:
    """Return the class mask [C] of a weighted support set; None without weights or classes."""
    if support.weight is None or support.y.is_floating_point():
        return None
    return _class_mask(support, outputs)


def zero_padding(batch: Batch) -> Batch:
    """Return the batch with zeros instead of padding, so that no padding reaches a gradient."""
    if batch.weight is None:
        return batch
    counts = batch.weight > 0

    def masked(values: Tensor) -> Tensor:
        mask = counts.view(*counts.shape, *[1] * (values.dim() - counts.dim()))
        return torch.where(mask, values, torch.zeros_like(values))

    return batch._replace(x=masked(batch.x), y=masked(batch.y))


def adapt_with_example_weights(adapt: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `adapt` so that it runs in a scope with the weights of the support set, if any."""

    def adapt_one(meta: Meta, support: Batch, step_indices: tuple[int, ...], key: Key) -> Any:
        if support.weight is None:
            return adapt(meta, support, step_indices, key)
        support = zero_padding(support)
        with padding_scope(support.weight):
            return adapt(meta, support, step_indices, key)

    return adapt_one


def predict_with_example_weights(
    predict: Callable[..., Tensor], features: Callable[..., Tensor] | None
) -> Callable[..., list[Tensor]]:
    """Return (meta, P adapted, support, query_x, query_weight) -> P x [M, C], with the weights.

    Classes without support examples get probability 0."""

    def predict_all(
        meta: Meta,
        adapted: list[Any],
        support: Batch,
        query_x: Tensor,
        query_weight: Tensor | None = None,
    ) -> list[Tensor]:
        def predict_each() -> list[Tensor]:
            x = query_x if features is None else features(meta, support, query_x)
            return [predict(meta, params, support, x) for params in adapted]

        if support.weight is None and query_weight is None:
            return predict_each()
        support = zero_padding(support)
        with padding_scope(query_weight, context=support.weight):
            predictions = predict_each()
        class_mask = class_mask_of(support, predictions[0].shape[-1])
        return [mask_absent_classes(outputs, class_mask) for outputs in predictions]

    return predict_all
