"""Checks of a method's state, of its step, and of its executors."""

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


def check_component(case: Case) -> None:
    """A component is frozen, default-constructible, and the same after JSON and back.

    Every field has a sentence; unknown fields are refused."""
    for options in ({}, case.options):
        check_form(case.component, options)
    default: Any = case.component
    assert default().name == case.name


def check_init_is_a_function_of_the_key(case: Case) -> None:
    """The same key gives the same bits whatever torch's own generator holds.

    Another key gives other numbers."""
    before = torch.get_rng_state()
    first = case.method.init(fold_in(0, "init"))
    message = "draws from torch's own generator: use metalearn.rng with the key"
    assert torch.equal(torch.get_rng_state(), before), f"init {message}"
    assert same(first, case.method.init(fold_in(0, "init")))
    assert not leaves(first.meta) or not same(first.meta, case.method.init(fold_in(1, "init")).meta)
    assert first.step.shape == () and first.step == 0
    assert {leaf.dtype for leaf in leaves(first)} == {F64}


def check_inputs_are_left_as_they_were(case: Case) -> None:
    """Neither a step nor learning writes into its arguments."""
    state, data, episode = case.state(), case.data(0), episodes(case)
    inputs = [state, data, episode]
    before = copy.deepcopy(inputs)
    predictions_of(case, state.meta, episode)
    if case.method.step is not None:
        case.step(state, data)
    assert same(inputs, before)


@needs("step")
def check_a_step_keeps_the_form_of_the_state(case: Case) -> None:
    """A step keeps structure, shapes and dtypes of the state, in float64 and float32.

    Metrics are scalars without a graph; the step count is increased."""
    for dtype in (F64, torch.float32):
        dtype_case = case.rebuild(dtype=dtype)
        state = dtype_case.state()
        data = tree_map(
            lambda leaf, to=dtype: leaf.to(to) if leaf.is_floating_point() else leaf,
            dtype_case.data(0),
        )
        after, metrics = dtype_case.step(state, data)
        old, new = named_leaves(state), named_leaves(after)
        expected = {n: (v.shape, v.dtype) for n, v in new.items()}
        assert {n: (v.shape, v.dtype) for n, v in old.items()} == expected
        assert {value.dtype for value in new.values()} == {dtype}
        assert metrics
        assert all(v.shape == () and v.dtype == dtype and v.isfinite() for v in metrics.values())
        assert not any(v.requires_grad for v in [*new.values(), *metrics.values()])
        assert after.step == 1


# checks of executors


def _compile_small_case(case: Case) -> tuple[Case, Any]:
    """Return a case with one inner step if it has inner steps, and its compiled step."""
    options: dict[str, Any] = (
        {"inner_steps": 1} if "inner_steps" in case.component.model_fields else {}
    )
    small_case = case.rebuild(**options)
    return small_case, compiled_step(case.component(**small_case.options))


def _run_two_steps(case: Case, step: Callable[..., Any]) -> tuple[Any, list[Any]]:
    state, step_metrics = case.method.init(fold_in(0, "init")), []
    for index in range(2):
        state, metrics = step(state, case.data(index))
        step_metrics.append(metrics)
    return state, step_metrics


@needs("task_grad")
def check_vmap_equals_the_loop(case: Case) -> None:
    """All tasks in one graph give the same result as one task after another."""
    together, alone = (
        _run_two_steps(case, executor.make_step(case.method, name)) for name in ("vmap", "loop")
    )
    close(together, alone)


@needs("task_grad")
def check_chunks_equal_the_whole(case: Case) -> None:
    """Chunks of 1, of 2 (the last one smaller), and of more tasks than there are."""
    whole = _run_two_steps(case, executor.make_step(case.method, "vmap"))
    for size in (1, 2, TASKS + 3):
        close(_run_two_steps(case, executor.make_step(case.method, "chunk", size)), whole)


@needs("step")
def check_compiled_equals_eager(case: Case) -> None:
    """The whole step is one graph for the compiler, with the same numbers."""
    small_case, step = _compile_small_case(case)
    close(
        step(small_case.state(), small_case.data(0)),
        small_case.step(small_case.state(), small_case.data(0)),
    )


@needs("step")
def check_the_second_call_compiles_nothing(case: Case) -> None:
    """Other episodes, another state and step count: the same graph."""
    small_case, step = _compile_small_case(case)
    state, _ = step(small_case.state(), small_case.data(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for index in (1, 2):
            state, _ = step(state, small_case.data(index))
    assert state.step == 3


@needs("task_grad")
def check_the_order_of_tasks_does_not_matter(case: Case) -> None:
    """Tasks and their lanes, which differ after a first step, in another order: equal updates."""
    state, _ = case.step(case.state(), case.data(0))
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = state if state.lanes is None else state._replace(lanes=take(state.lanes, order))
    (expected, metrics), (actual, permuted_metrics) = (
        case.step(state, case.data(1)),
        case.step(permuted, take(case.data(1), order)),
    )
    close((expected.meta, expected.opt, metrics), (actual.meta, actual.opt, permuted_metrics))
    if expected.lanes is not None:
        close(take(expected.lanes, order), actual.lanes)
