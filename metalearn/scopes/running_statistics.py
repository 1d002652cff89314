"""Running statistics of normalisation: training steps move them, everything else reads them.

A training step opens the scope `training()`. Inside, layers with running statistics normalise by
the batch in hand, and each forward pass moves their averages as torch's batch norm does,

    running <- (1 - momentum) running + momentum * statistics of the batch,

the variance unbiased. Passes of inner steps normalise in the same way and move nothing: they lie
inside another derivative, and their number is a choice of the method. The step subtracts the
movement as if it were a gradient, so that every executor and every number of processes averages it
over tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from metalearn.tree import STATS
from metalearn.types import Params


class Scope:
    """The batch statistics of the passes of one training step, by the leaf that they move."""

    def __init__(self, records: bool) -> None:
        self.records = records
        self.moves: dict[str, list[tuple[Tensor, float]]] = {}

    def moved(self, params: Params) -> Params:
        """The parameters, their running statistics moved by the passes in turn."""
        new = dict(params)
        for leaf, moves in self.moves.items():
            for value, momentum in moves:
                new[leaf] = (1 - momentum) * new[leaf].detach() + momentum * value
        return new

    def differences(self, params: Params) -> Params:
        """Old minus moved running statistics, which an update subtracts."""
        new = self.moved(params)
        return {leaf: params[leaf].detach() - new[leaf] for leaf in self.moves}


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[Scope | None] = []


_scopes = _Scopes()


@contextmanager
def training(on: bool = True, *, records: bool = True) -> Iterator[Scope]:
    """Inside, layers normalise by the batch in hand and, where it `records`, its scope collects."""
    scope = Scope(records)
    _scopes.open.append(scope if on else None)
    try:
        yield scope
    finally:
        _scopes.open.pop()


def is_training() -> bool:
    """Whether a forward pass is one of a training step."""
    return bool(_scopes.open) and _scopes.open[-1] is not None


def record(layer: str, statistics: dict[str, Tensor], momentum: float) -> None:
    """Hand the statistics of a batch to the open scope: {leaf of the layer: value}."""
    scope = _scopes.open[-1] if _scopes.open else None
    if scope is not None and scope.records:
        for leaf, value in statistics.items():
            place = f"{STATS}{layer}.{leaf}"
            scope.moves.setdefault(place, []).append((value.detach(), momentum))
