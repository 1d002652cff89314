"""How a search makes the training steps of its candidates: one by one, or as an executor does.

A search calls `steps_of`; without a scope it gets the method's own step on
what `draw` gives. An executor above opens the scope `steps_made_by(maker)`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from metalearn.rng import fold_in
from metalearn.scopes.stack import Stack
from metalearn.types import Key, MetaState, Method, Metrics

Draw = Callable[[Key, int], Any]
# (state, number) -> (state, metrics): the step that learns from draw(fold_in(key, number), tasks)
Step = Callable[[MetaState, int], tuple[MetaState, Metrics]]
Maker = Callable[[Method, Draw, Key, int, int], Step]  # the last number: steps that will be made


def _one_by_one(method: Method, draw: Draw, key: Key, tasks: int, steps: int) -> Step:
    step = method.step
    assert step is not None
    return lambda state, number: step(state, draw(fold_in(key, number), tasks))


_makers: Stack[Maker] = Stack(_one_by_one)


def steps_made_by(maker: Maker) -> AbstractContextManager[None]:
    """A context in which searches take the steps that `maker` makes."""
    return _makers.holding(maker)


def steps_of(method: Method, draw: Draw, key: Key, tasks: int, steps: int) -> Step:
    """The training step of a method, which will be made `steps` times."""
    return _makers.innermost(method, draw, key, tasks, steps)
