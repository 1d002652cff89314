"""What a forward pass tells the normalisation layers inside a module whose `forward` takes only x.

Kept beside the call, because a module from outside has no argument for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

Moments = list[tuple[Tensor, Tensor]]


class ForwardPass(NamedTuple):
    """Options of one forward pass."""

    rows: int | None = None  # statistics of the first `rows` examples; None: of all
    recorded: dict[str, Moments] | None = None  # filled with the batch statistics of each layer


_DEFAULT = ForwardPass()


class _Passes(threading.local):
    def __init__(self) -> None:
        self.open: list[ForwardPass] = []


_passes = _Passes()


@contextmanager
def forward_pass(rows: int | None, recorded: dict[str, Moments] | None = None) -> Iterator[None]:
    """Inside, `current()` has these options."""
    _passes.open.append(ForwardPass(rows, recorded))
    try:
        yield
    finally:
        _passes.open.pop()


def current() -> ForwardPass:
    """The options of the innermost pass."""
    return _passes.open[-1] if _passes.open else _DEFAULT
