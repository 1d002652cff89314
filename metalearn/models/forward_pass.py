"""Arguments of a forward pass for normalisation layers in a module with `forward(x)`.

Stored outside of the call, because a user's module has no argument for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Passes(threading.local):
    def __init__(self) -> None:
        self.rows: list[int | None] = []
        self.layers: list[set[str]] = []


_passes = _Passes()


@contextmanager
def statistics_of_rows(rows: int | None) -> Iterator[None]:
    """Context manager: statistics are those of the first `rows` examples of a batch; None: all."""
    _passes.rows.append(rows)
    try:
        yield
    finally:
        _passes.rows.pop()


@contextmanager
def layers_run() -> Iterator[set[str]]:
    """Context manager that collects the names of the layers that call `record_layer`."""
    _passes.layers.append(set())
    try:
        yield _passes.layers[-1]
    finally:
        _passes.layers.pop()


def record_layer(name: str) -> None:
    """Add the name of a layer that normalises by its policy to the open collection."""
    if _passes.layers:
        _passes.layers[-1].add(name)


def statistics_rows() -> int | None:
    """Return the number of examples whose statistics normalise; None: all."""
    return _passes.rows[-1] if _passes.rows else None
