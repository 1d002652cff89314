"""Labels of episodes, checked before they reach a trace in which their values are out of reach."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.types import Batch, Episode

Labels = npt.NDArray[np.int64]


def check_labels(episodes: Episode, ways: int) -> None:
    """ConfigError for labels of episodes [T, ...] that are no classes 0 .. N-1.

    Also for queries of a class without support examples. Nothing is checked on other devices,
    inside a trace, and in regression.
    """
    support, query = (_labels(batch, ways, name) for batch, name in _sets(episodes))
    if support is None or query is None or query.ndim != 2 or not query.size:
        return
    present = np.zeros((len(support), ways + 1), dtype=bool)
    np.put_along_axis(present, support, True, axis=1)
    present[:, ways] = True  # the place of padding
    known = np.take_along_axis(present, query, axis=1)
    if not known.all():
        task, row = np.argwhere(~known)[0].tolist()
        text = f"has no example of class {query[task, row]}, which a query of task {task} has"
        raise ConfigError(("support set", f"{text}: a task can only ask for what it shows"))


def check_example_labels(batch: Batch, classes: int) -> None:
    """The same for labelled examples [B] over all classes of a split."""
    _labels(batch, classes, "examples")


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


def _is_concrete(values: Tensor) -> bool:
    """Whether it is an ordinary CPU tensor outside of any trace."""
    if torch.compiler.is_compiling() or type(values) is not Tensor or not values.is_cpu:
        return False
    inside = torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack()
    return not inside
