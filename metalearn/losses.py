"""Losses and scores of one task, fit for vmap and double differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.types import EpisodeSpec

Criterion = Callable[[Tensor, Tensor], Tensor]


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """[B] int64 -> [B, C]; torch's own one_hot does not run under vmap."""
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(dtype)


def cross_entropy_each(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] of each example: [..., B, C], [..., B] -> [..., B], nats."""
    return -torch.log_softmax(logits, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy: [..., B, C], [..., B] -> [...]."""
    return cross_entropy_each(logits, y).mean(-1)


def squared_error(predictions: Tensor, y: Tensor) -> Tensor:
    """Squared error averaged over examples and outputs: [..., B, C], [..., B, C] -> [...]."""
    return (predictions - y).square().mean((-2, -1))


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of examples whose largest output is the label: [..., B, C], [..., B] -> [...]."""
    return (logits.argmax(-1) == y).to(logits.dtype).mean(-1)


def criterion(spec: EpisodeSpec) -> Criterion:
    """The loss of a kind of task."""
    return cross_entropy if spec.classification else squared_error


def metrics(spec: EpisodeSpec, predictions: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Detached `query_loss` and, for classes, `query_accuracy`."""
    predictions = predictions.detach()
    found = {"query_loss": criterion(spec)(predictions, y)}
    if spec.classification:
        found["query_accuracy"] = accuracy(predictions, y)
    return found
