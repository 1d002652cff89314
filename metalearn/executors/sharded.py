"""Steps by number, for callers that do not use `make_step_fn` yet."""

from __future__ import annotations

from metalearn.executors.executor import Advance, Draw
from metalearn.executors.step import Packing as Packing
from metalearn.executors.step import Total, make_step_fn
from metalearn.executors.step import share_of as share_of
from metalearn.types import Key, Method


def make_advance(
    method: Method,
    draw: Draw,
    key: Key,
    tasks: int,
    device: str,
    executor: str,
    chunk: int | None = None,
    workers: int | None = None,
) -> Advance:
    """(state, n) -> (state, metrics): step n on what `draw(fold_in(key, n))` gives."""
    made = make_step_fn(
        method,
        lambda key, count, first: draw(key),
        key,
        tasks=tasks,
        device=device,
        executor=executor,
        chunk=chunk,
        workers=workers,
    )
    return lambda state, number: made.step(state, made.sample(number))


def make_split_advance(
    method: Method,
    draw: Draw,
    key: Key,
    tasks: int,
    own: int,
    device: str,
    executor: str,
    chunk: int | None,
    total: Total,
) -> Advance:
    """The same of one process of several; `draw` draws its `own` tasks of `tasks`."""
    made = make_step_fn(
        method,
        lambda key, count, first: draw(key),
        key,
        tasks=tasks,
        device=device,
        executor=executor,
        chunk=chunk,
        share=(0, own),
        total=total,
    )
    return lambda state, number: made.step(state, made.sample(number))
