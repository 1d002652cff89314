"""Padding of tasks by `Batch.weight`: what of a batch counts, in losses, means and statistics.

Tasks of different numbers of classes and shots have one shape in a batch: an example of weight 0
is padding. A class without an example in a task's support set is no class of that task: its output
is left out of every softmax. A learner's functions have no argument for weights, so they are
passed through a context manager around the call; without weights no context is open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.types import Batch, Key, Meta

FARTHEST = 5.0  # deviations, beyond which standardised columns are cut off


class Padding(NamedTuple):
    """The weights of one forward pass; None: everything counts."""

    weight: Tensor | None = None  # [B] of the examples in hand
    context: Tensor | None = None  # [K] of the support set beside them
    present: Tensor | None = None  # [C] 1 for the classes of the task's support set, else 0


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[Padding] = []
        self.statistics: list[Tensor | None] = []


_scopes, _NONE = _Scopes(), Padding()


def current() -> Padding:
    """The weights of the innermost scope."""
    return _scopes.open[-1] if _scopes.open else _NONE


@contextmanager
def padded(
    weight: Tensor | None, context: Tensor | None = None, present: Tensor | None = None
) -> Iterator[None]:
    """Inside, examples in hand and their support set have these weights."""
    _scopes.open.append(Padding(weight, context, present))
    try:
        yield
    finally:
        _scopes.open.pop()


@contextmanager
def statistics_of(weight: Tensor | None) -> Iterator[None]:
    """Inside, normalisation weights the examples that it takes statistics of by `weight`."""
    _scopes.statistics.append(weight)
    try:
        yield
    finally:
        _scopes.statistics.pop()


def statistics_weight() -> Tensor | None:
    """Weights [B] of the examples whose statistics normalise; None: all the same."""
    return _scopes.statistics[-1] if _scopes.statistics else None


def weighted_moments(x: Tensor, weight: Tensor, channel: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(mean [channels], biased variance [channels], count []) of x over all axes but `channel`.

    mean = sum_b w_b x_b / sum_b w_b; an example of weight 0 changes nothing, whatever it holds."""
    axes = tuple(axis for axis in range(x.dim()) if axis != channel % x.dim())
    shape = [1] * x.dim()
    shape[channel] = -1
    w = weight.view(-1, *[1] * (x.dim() - 1))
    places = x.numel() // (x.shape[0] * x.shape[channel])
    count = weight.sum() * places
    there = torch.where(w > 0, x, torch.zeros_like(x))
    mean = (w * there).sum(axes) / count
    var = (w * (there - mean.view(shape)).square()).sum(axes) / count
    return mean, var, count


def standardise(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """((x - mean) / deviation of each column, whether the column varies); cut off at 5 deviations.

    Mean and deviation are those of `context` [K, *X], default x itself, weighted as the scope of
    `padded` says; a column that is constant there becomes 0. x [B, *X] -> [B, F], [F]."""
    x = x.flatten(1)
    weight = current().weight if context is None else current().context
    base = x if context is None else context.flatten(1)
    weight = torch.ones_like(base[:, 0]) if weight is None else weight
    share = (weight / weight.sum()).unsqueeze(-1)  # [K, 1]
    mean = (share * base).sum(0)
    variance = (share * (base - mean).square()).sum(0)
    varies = variance > 1e-12 * mean.square() + 1e-30
    scale = torch.where(varies, variance, torch.ones_like(variance)).rsqrt()
    found = ((x - mean) * scale).clamp(-FARTHEST, FARTHEST)
    return torch.where(varies, found, torch.zeros_like(found)), varies


def present_classes(batch: Batch, classes: int) -> Tensor:
    """[C] float, 1 for classes with an example of positive weight: of y [B, *Y] int64."""
    same = batch.y.unsqueeze(-1) == torch.arange(classes, device=batch.y.device)
    if batch.y.dim() > 1:
        same = same.flatten(1, -2).any(1)  # [B, C]
    if batch.weight is None:
        return same.any(0).to(torch.get_default_dtype())
    counts = batch.weight.unsqueeze(-1) * same.to(batch.weight.dtype)
    return (counts.amax(0) > 0).to(batch.weight.dtype)


def without_absent(logits: Tensor, present: Tensor | None) -> Tensor:
    """Logits [..., C], those of absent classes so low that their probability is 0."""
    if present is None:
        return logits
    lowest = torch.finfo(logits.dtype).min / 4
    return torch.where(present > 0, logits, torch.full_like(logits, lowest))


def present_in(support: Batch, outputs: int) -> Tensor | None:
    """The classes [C] of a support set with weights; None without weights, and in regression."""
    if support.weight is None or support.y.is_floating_point():
        return None
    return present_classes(support, outputs)


def cleaned(batch: Batch) -> Batch:
    """The batch with zeros in the place of padding, so that nothing there reaches a gradient."""
    if batch.weight is None:
        return batch
    there = batch.weight > 0

    def clear(values: Tensor) -> Tensor:
        where = there.view(*there.shape, *[1] * (values.dim() - there.dim()))
        return torch.where(where, values, torch.zeros_like(values))

    return batch._replace(x=clear(batch.x), y=clear(batch.y))


def adapt_with_weights(adapt: Callable[..., Any]) -> Callable[..., Any]:
    """`adapt` in the scope of the weights of its support set, where it has any."""

    def adapt_one(meta: Meta, support: Batch, points: tuple[int, ...], key: Key) -> Any:
        if support.weight is None:
            return adapt(meta, support, points, key)
        support = cleaned(support)
        with padded(support.weight):
            return adapt(meta, support, points, key)

    return adapt_one


def predict_with_weights(
    predict: Callable[..., Tensor], features: Callable[..., Tensor] | None
) -> Callable[..., list[Tensor]]:
    """(meta, items, support, query_x, query_weight) -> P x [M, C] in the scope of the weights.

    Classes without support examples get no probability."""

    def predict_all(
        meta: Meta,
        items: list[Any],
        support: Batch,
        query_x: Tensor,
        query_weight: Tensor | None = None,
    ) -> list[Tensor]:
        def predict_items() -> list[Tensor]:
            x = query_x if features is None else features(meta, support, query_x)
            return [predict(meta, item, support, x) for item in items]

        if support.weight is None and query_weight is None:
            return predict_items()
        support = cleaned(support)
        with padded(query_weight, context=support.weight):
            predictions = predict_items()
        present = present_in(support, predictions[0].shape[-1])
        return [without_absent(outputs, present) for outputs in predictions]

    return predict_all
