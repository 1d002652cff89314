"""How a search makes the training steps of its candidates: one by one, or as an executor does.

A search calls `steps_of`; without a scope it gets the method's own step on
what `draw` gives. An executor above opens the scope `steps_made_by(maker)`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metalearn.rng import fold_in
from metalearn.types import Key, MetaState, Method, Metrics

Draw = Callable[[Key, int], Any]
# (state, number) -> (state, metrics): the step that learns from draw(fold_in(key, number), tasks)
Step = Callable[[MetaState, int], tuple[MetaState, Metrics]]
Maker = Callable[[Method, Draw, Key, int, int], Step]  # the last number: steps that will be made


class _Makers(threading.local):
    def __init__(self) -> None:
        self.open: list[Maker] = []


_makers = _Makers()


@contextmanager
def steps_made_by(maker: Maker) -> Iterator[None]:
    """A context in which searches take the steps that `maker` makes."""
    _makers.open.append(maker)
    try:
        yield
    finally:
        _makers.open.pop()


def steps_of(method: Method, draw: Draw, key: Key, tasks: int, steps: int) -> Step:
    """The training step of a method, which will be made `steps` times."""
    if _makers.open:
        return _makers.open[-1](method, draw, key, tasks, steps)
    step = method.step
    assert step is not None
    return lambda state, number: step(state, draw(fold_in(key, number), tasks))
