"""Noise inside a network, such as dropout, as a function of a key: only in training steps.

A training step opens a scope with `noise_from(key)`; every sample inside uses the next key of that
scope. Outside of a scope networks sample nothing: testing is without noise. Samples are numbered in
the order of the calls, so a loop over tasks and a vmap over tasks sample the same bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from metalearn.rng import fold_in
from metalearn.types import Key

# A number, computed at import: a step that hashes a name cannot be compiled.
NOISE = int(fold_in(0, "noise"))


class NoiseScope:
    """A key and the number of samples from it."""

    def __init__(self, key: Key | None) -> None:
        self.key, self.draws = key, 0


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.open: list[NoiseScope] = []


_scopes = _Scopes()


@contextmanager
def noise_from(key: Key | None) -> Iterator[NoiseScope]:
    """Context manager in which networks sample their noise from `key`; None disables noise."""
    _scopes.open.append(NoiseScope(key))
    try:
        yield _scopes.open[-1]
    finally:
        _scopes.open.pop()


def is_active() -> bool:
    """Return whether a scope with a key is open."""
    return bool(_scopes.open) and _scopes.open[-1].key is not None


def current_key() -> Key:
    """Return the key of the open scope."""
    key = _scopes.open[-1].key
    assert key is not None
    return key


def next_key() -> Key:
    """Return the key of the next sample of the open scope."""
    scope, key = _scopes.open[-1], current_key()
    scope.draws += 1
    return fold_in(key, NOISE, scope.draws)
