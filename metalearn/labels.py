"""Check the targets of episodes before tracing, where their values are not available."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.losses import PROBABILITIES
from metalearn.types import Batch, Episode, EpisodeSpec

Labels = npt.NDArray[np.int64]


def check_targets(episodes: Episode, spec: EpisodeSpec) -> None:
    """ConfigError for targets of episodes [T, ...] that the loss of `spec` is not defined for.

    Nothing is checked on other devices and inside a trace."""
    if spec.classification:
        check_labels(episodes, spec.outputs)
    elif spec.loss in PROBABILITIES:
        for batch, name in _sets(episodes):
            _check_probabilities(batch, name)


def check_example_targets(batch: Batch, spec: EpisodeSpec) -> None:
    """The same for labelled examples [B] over all classes of a split."""
    if spec.classification:
        _labels(batch, spec.num_classes, "examples")
    elif spec.loss in PROBABILITIES:
        _check_probabilities(batch, "examples")


def check_labels(episodes: Episode, ways: int) -> None:
    """ConfigError for labels of episodes [T, ...] that are no classes 0 .. N-1.

    Also for queries of a class without support examples."""
    support, query = (_labels(batch, ways, name) for batch, name in _sets(episodes))
    if support is None or query is None or query.ndim != 2 or not query.size:
        return
    present = np.zeros((len(support), ways + 1), dtype=bool)
    np.put_along_axis(present, support, True, axis=1)
    present[:, ways] = True  # the place of padding
    known = np.take_along_axis(present, query, axis=1)
    if not known.all():
        task, row = np.argwhere(~known)[0].tolist()
        text = f"has no example of class {query[task, row]}, which is in the queries of task {task}"
        raise ConfigError(("support set", f"{text}: every query class needs support examples"))


def _sets(episodes: Episode) -> list[tuple[Batch, str]]:
    return [(episodes.support, "support set"), (episodes.query, "query set")]


def _labels(batch: Batch, classes: int, name: str) -> Labels | None:
    """Labels as numpy, `classes` in the place of padding; None where they cannot be read."""
    y = batch.y
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not whole or not _is_concrete(y):  # the loss refuses other types
        return None
    labels: Labels = y.numpy().astype(np.int64, copy=False)
    if batch.weight is not None and _is_concrete(batch.weight):
        weight = batch.weight.numpy().reshape(
            batch.weight.shape + (1,) * (y.dim() - batch.weight.dim())
        )
        labels = np.where(weight > 0, labels, classes)
        wrong = labels[(labels < 0) | (labels > classes)]
    elif labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels[(labels < 0) | (labels >= classes)]
    else:
        return labels
    if wrong.size:
        shown = ", ".join(str(label) for label in np.unique(labels)[:5])
        text = f"of the {name} are {shown}, ...: a task of {classes} ways has 0 .. {classes - 1}"
        raise ConfigError(("labels", text))
    return labels


def _check_probabilities(batch: Batch, name: str) -> None:
    """ConfigError for targets outside 0 .. 1; padding is not looked at."""
    if not _is_concrete(batch.y):
        return
    wrong = ~((batch.y >= 0) & (batch.y <= 1))
    if batch.weight is not None and _is_concrete(batch.weight):
        weight = batch.weight
        wrong &= (weight > 0).view(weight.shape + (1,) * (wrong.dim() - weight.dim()))
    if wrong.any():
        value = batch.y[wrong][0].item()
        text = f"of the {name} must be in 0 .. 1 for this loss: got {value:.4g}"
        raise ConfigError(("targets", text))


def _is_concrete(values: Tensor) -> bool:
    """Whether it is an ordinary CPU tensor outside of any trace."""
    if torch.compiler.is_compiling() or type(values) is not Tensor or not values.is_cpu:
        return False
    inside = torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack()
    return not inside
