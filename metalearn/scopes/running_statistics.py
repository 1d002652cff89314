"""Running statistics of normalisation: training steps update them, everything else reads them.

A training step opens the scope `training_scope()`. Inside, layers with running statistics
normalise with the current batch, and each forward pass updates their averages as torch's batch norm
does,

    running <- (1 - momentum) running + momentum * statistics of the batch,

the variance unbiased. Passes of inner steps normalise in the same way and update nothing: they lie
inside another derivative, and their number is a choice of the method. The step subtracts the change
as if it were a gradient, so that every executor and every number of processes averages it over
tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from metalearn.tree import STATS
from metalearn.types import Params


class StatsScope:
    """The batch statistics of the passes of one training step, by the leaf that they update."""

    def __init__(self, records: bool) -> None:
        self.records = records
        self.batches: dict[str, list[tuple[Tensor, float]]] = {}  # (value, momentum) of each pass

    def updated(self, params: Params) -> Params:
        """The parameters, with their running statistics updated by each pass in order."""
        new = dict(params)
        for leaf, passes in self.batches.items():
            for value, momentum in passes:
                new[leaf] = (1 - momentum) * new[leaf].detach() + momentum * value
        return new

    def delta(self, params: Params) -> Params:
        """Old - new running statistics, which an update subtracts."""
        new = self.updated(params)
        return {leaf: params[leaf].detach() - new[leaf] for leaf in self.batches}


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[StatsScope | None] = []


_scopes = _Scopes()


@contextmanager
def training_scope(on: bool = True, *, records: bool = True) -> Iterator[StatsScope]:
    """Context manager in which layers normalise with the current batch.

    If it `records`, its scope collects the statistics of the passes."""
    scope = StatsScope(records)
    _scopes.open.append(scope if on else None)
    try:
        yield scope
    finally:
        _scopes.open.pop()


def is_training() -> bool:
    """Whether a forward pass is one of a training step."""
    return bool(_scopes.open) and _scopes.open[-1] is not None


def record_batch(layer: str, statistics: dict[str, Tensor], momentum: float) -> None:
    """Give the statistics of a batch, {leaf of the layer: value}, to the open scope."""
    scope = _scopes.open[-1] if _scopes.open else None
    if scope is not None and scope.records:
        for leaf, value in statistics.items():
            name = f"{STATS}{layer}.{leaf}"
            scope.batches.setdefault(name, []).append((value.detach(), momentum))
