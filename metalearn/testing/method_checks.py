"""Checks of a method's state, of its step, and of ways to execute it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from metalearn.executors import executor
from metalearn.rng import fold_in
from metalearn.testing.case import (
    F64,
    TASKS,
    Case,
    close,
    compiled_step,
    episodes,
    needs,
    predictions_of,
    same,
)
from metalearn.testing.form import check_form
from metalearn.tree import leaves, named_leaves, take, tree_map


def check_component(given: Case) -> None:
    """A component is frozen, default-constructible, and the same after JSON and back.

    Every field has a sentence; unknown fields are refused."""
    for options in ({}, given.options):
        check_form(given.component, options)
    default: Any = given.component
    assert default().name == given.name


def check_init_is_a_function_of_the_key(given: Case) -> None:
    """The same key gives the same bits whatever torch's own generator holds.

    Another key gives other numbers."""
    before = torch.get_rng_state()
    first = given.method.init(fold_in(0, "init"))
    drawn = "draws from torch's own generator: use metalearn.rng with the key"
    assert torch.equal(torch.get_rng_state(), before), f"init {drawn}"
    assert same(first, given.method.init(fold_in(0, "init")))
    assert not leaves(first.meta) or not same(
        first.meta, given.method.init(fold_in(1, "init")).meta
    )
    assert first.step.shape == () and first.step == 0
    assert {leaf.dtype for leaf in leaves(first)} == {F64}


def check_inputs_are_left_as_they_were(given: Case) -> None:
    """Neither a step nor learning writes into what it is given."""
    state, data, episode = given.state(), given.data(0), episodes(given)
    given_trees = [state, data, episode]
    before = copy.deepcopy(given_trees)
    predictions_of(given, state.meta, episode)
    if given.method.step is not None:
        given.step(state, data)
    assert same(given_trees, before)


@needs("step")
def check_a_step_keeps_the_form_of_the_state(given: Case) -> None:
    """A step keeps structure, shapes and dtypes of the state, in float64 and float32.

    Metrics are numbers without a graph; the count goes up."""
    for dtype in (F64, torch.float32):
        one = given.rebuild(dtype=dtype)
        state = one.state()
        data = tree_map(
            lambda leaf, to=dtype: leaf.to(to) if leaf.is_floating_point() else leaf, one.data(0)
        )
        after, metrics = one.step(state, data)
        old, new = named_leaves(state), named_leaves(after)
        expected = {n: (v.shape, v.dtype) for n, v in new.items()}
        assert {n: (v.shape, v.dtype) for n, v in old.items()} == expected
        assert {value.dtype for value in new.values()} == {dtype}
        assert metrics
        assert all(v.shape == () and v.dtype == dtype and v.isfinite() for v in metrics.values())
        assert not any(v.requires_grad for v in [*new.values(), *metrics.values()])
        assert after.step == 1


# checks of executors


def _compiled(given: Case) -> tuple[Case, Any]:
    """One inner step is enough."""
    one: dict[str, Any] = (
        {"inner_steps": 1} if "inner_steps" in given.component.model_fields else {}
    )
    small = given.rebuild(**one)
    return small, compiled_step(given.component(**small.options))


def _two_steps(given: Case, step: Callable[..., Any]) -> tuple[Any, list[Any]]:
    state, found = given.method.init(fold_in(0, "init")), []
    for number in range(2):
        state, metrics = step(state, given.data(number))
        found.append(metrics)
    return state, found


@needs("task_grad")
def check_vmap_equals_the_loop(given: Case) -> None:
    """All tasks in one graph, and one after another."""
    together, alone = (
        _two_steps(given, executor.make_step(given.method, name)) for name in ("vmap", "loop")
    )
    close(together, alone)


@needs("task_grad")
def check_chunks_equal_the_whole(given: Case) -> None:
    """Pieces of 1, 2 (the last one smaller) and more than there are."""
    whole = _two_steps(given, executor.make_step(given.method, "vmap"))
    for size in (1, 2, TASKS + 3):
        close(_two_steps(given, executor.make_step(given.method, "chunk", size)), whole)


@needs("step")
def check_compiled_equals_eager(given: Case) -> None:
    """The whole step is one graph for the compiler, with the same numbers."""
    small, step = _compiled(given)
    close(step(small.state(), small.data(0)), small.step(small.state(), small.data(0)))


@needs("step")
def check_the_second_call_compiles_nothing(given: Case) -> None:
    """Other episodes, another state and step count: the same graph."""
    small, step = _compiled(given)
    state, _ = step(small.state(), small.data(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in (1, 2):
            state, _ = step(state, small.data(number))
    assert state.step == 3


@needs("task_grad")
def check_the_order_of_tasks_does_not_matter(given: Case) -> None:
    """Tasks and their lanes, which differ after a first step, in another order: the same update."""
    state, _ = given.step(given.state(), given.data(0))
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = state if state.lanes is None else state._replace(lanes=take(state.lanes, order))
    (one, metrics), (two, others) = (
        given.step(state, given.data(1)),
        given.step(turned, take(given.data(1), order)),
    )
    close((one.meta, one.opt, metrics), (two.meta, two.opt, others))
    if one.lanes is not None:
        close(take(one.lanes, order), two.lanes)
