"""Check episodes: how many there are, and their targets, whose values tracing hides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.losses import PROBABILITIES
from metalearn.types import Batch, Episode, EpisodeSpec

Labels = npt.NDArray[np.int64]


def check_number(batch: Batch, number: int, call: str) -> None:
    """Raise ConfigError if what `call` of a task source returned is not of the requested number.

    batch: x [T, ...] of its tasks, or x [B, ...] of its examples."""
    if len(batch.x) != number:
        text = f"{call} of the task source returned {len(batch.x)} instead of {number}: draw with"
        raise ConfigError(("task", f"{text} replacement where there are fewer"))


def check_targets(episodes: Episode, spec: EpisodeSpec) -> None:
    """Raise ConfigError for targets of episodes [T, ...] for which the loss is not defined.

    Nothing is checked on other devices and inside a trace."""
    if spec.classification:
        check_labels(episodes, spec.outputs)
    elif spec.loss in PROBABILITIES:
        for batch, name in _sets(episodes):
            _check_probabilities(batch, name)


def check_example_targets(batch: Batch, spec: EpisodeSpec) -> None:
    """Check labelled examples [B] over all classes of a split in the same way."""
    if spec.classification:
        _labels(batch, spec.num_classes, "examples")
    elif spec.loss in PROBABILITIES:
        _check_probabilities(batch, "examples")


def check_labels(episodes: Episode, ways: int) -> None:
    """Raise ConfigError for labels of episodes [T, ...] that are not classes 0 .. N-1.

    Also for queries of a class without support examples."""
    support, query = (_labels(batch, ways, name) for batch, name in _sets(episodes))
    if support is None or query is None or query.ndim != 2 or not query.size:
        return
    present = np.zeros((len(support), ways + 1), dtype=bool)
    np.put_along_axis(present, support, True, axis=1)
    present[:, ways] = True  # the column of padding
    has_support = np.take_along_axis(present, query, axis=1)
    if not has_support.all():
        task, row = np.argwhere(~has_support)[0].tolist()
        text = f"has no example of class {query[task, row]}, which is in the queries of task {task}"
        raise ConfigError(("support set", f"{text}: every query class needs support examples"))


def _sets(episodes: Episode) -> list[tuple[Batch, str]]:
    return [(episodes.support, "support set"), (episodes.query, "query set")]


def _labels(batch: Batch, classes: int, name: str) -> Labels | None:
    """Return labels as numpy, with `classes` for padding; None if they cannot be read."""
    y = batch.y
    is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not is_integer or not _is_concrete(y):  # the loss refuses other types
        return None
    labels: Labels = y.numpy().astype(np.int64, copy=False)
    if batch.weight is not None and _is_concrete(batch.weight):
        weight = batch.weight.numpy().reshape(
            batch.weight.shape + (1,) * (y.dim() - batch.weight.dim())
        )
        labels = np.where(weight > 0, labels, classes)
        invalid = labels[(labels < 0) | (labels > classes)]
    elif labels.size and (labels.min() < 0 or labels.max() >= classes):
        invalid = labels[(labels < 0) | (labels >= classes)]
    else:
        return labels
    if invalid.size:
        examples = ", ".join(str(label) for label in np.unique(labels)[:5])
        owner = f"split of {classes} classes" if name == "examples" else f"task of {classes} ways"
        text = f"of the {name} are {examples}, ...: a {owner} has 0 .. {classes - 1}"
        raise ConfigError(("labels", text))
    return labels


def _check_probabilities(batch: Batch, name: str) -> None:
    """Raise ConfigError for targets outside 0 .. 1; padding is ignored."""
    if not _is_concrete(batch.y):
        return
    invalid = ~((batch.y >= 0) & (batch.y <= 1))
    if batch.weight is not None and _is_concrete(batch.weight):
        weight = batch.weight
        invalid &= (weight > 0).view(weight.shape + (1,) * (invalid.dim() - weight.dim()))
    if invalid.any():
        value = batch.y[invalid][0].item()
        text = f"of the {name} must be in 0 .. 1 for this loss: got {value:.4g}"
        raise ConfigError(("targets", text))


def _is_concrete(values: Tensor) -> bool:
    """Return whether it is an ordinary CPU tensor outside of any trace."""
    if torch.compiler.is_compiling() or type(values) is not Tensor or not values.is_cpu:
        return False
    inside = torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack()
    return not inside
