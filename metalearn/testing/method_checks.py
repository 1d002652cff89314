"""Checks of a method's state, of its step, and of its executors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
from metalearn.testing.sentences import expect_same
from metalearn.tree import leaves, named_leaves, take, tree_map


def check_component(case: Case) -> None:
    """A component is frozen, default-constructible, and the same after JSON and back.

    Every field has a sentence; unknown fields are refused."""
    for options in ({}, case.options):
        check_form(case.component, options)
    default: Any = case.component
    name = default().name
    assert name == case.name, f"the default name must be {case.name!r}, and is {name!r}"


def check_init_is_a_function_of_the_key(case: Case) -> None:
    """The same key gives the same bits whatever torch's own generator holds.

    Another key gives other numbers."""
    before = torch.get_rng_state()
    first = case.method.init(fold_in(0, "init"))
    message = "draws from torch's own generator: use metalearn.rng with the key"
    assert torch.equal(torch.get_rng_state(), before), f"init {message}"
    text = "init must return the same state when it is called again with the same key, and"
    expect_same(case.method.init(fold_in(0, "init")), first, text)
    other = case.method.init(fold_in(1, "init"))
    assert not leaves(first.meta) or not same(first.meta, other.meta), (
        "init must draw the meta from the key, and returns the same for two different keys"
    )
    assert first.step.shape == () and first.step == 0, (
        f"init must return the step 0 as a 0-d tensor, and returns {first.step}"
    )
    dtypes = {leaf.dtype for leaf in leaves(first)}
    assert dtypes == {F64}, f"all tensors of init must be {F64} as the spec, and are {dtypes}"


def check_inputs_are_left_as_they_were(case: Case) -> None:
    """Neither a step nor learning writes into its arguments."""
    state, data, episode = case.state(), case.data(0), episodes(case)
    inputs = [state, data, episode]
    before = copy.deepcopy(inputs)
    predictions_of(case, state.meta, episode)
    if case.method.step is not None:
        case.step(state, data)
    names = ("state", "tasks", "new tasks")
    for name, now, earlier in zip(names, inputs, before, strict=True):
        expect_same(now, earlier, f"the {name} must not be written to, and after the call it")


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
        _check_form(old, new, dtype)
        assert metrics, "a step must return metrics, and returns none"
        for name, value in metrics.items():
            assert value.shape == () and value.dtype == dtype and value.isfinite(), (
                f"the metric {name} must be a finite scalar of {dtype}, and is {value} of "
                f"{value.dtype}"
            )
        with_graph = [n for n, v in [*new.items(), *metrics.items()] if v.requires_grad]
        assert not with_graph, f"a step must return tensors without a graph, not {with_graph}"
        assert after.step == 1, f"a step must increase state.step from 0 to 1, not {after.step}"


def _check_form(old: dict[str, Tensor], new: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Check that a step returned the tensors of the state, with their shapes and dtypes."""
    assert old.keys() == new.keys(), (
        f"a step must return the tensors of its state, {sorted(old)}, and returns {sorted(new)}"
    )
    for name, value in new.items():
        assert value.shape == old[name].shape and value.dtype == dtype, (
            f"{name} must be {dtype} of shape {list(old[name].shape)} after a step, and is "
            f"{value.dtype} of shape {list(value.shape)}"
        )


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
    close(together, alone, "all tasks at once (vmap) must give what each task alone does, and")


@needs("task_grad")
def check_chunks_equal_the_whole(case: Case) -> None:
    """Chunks of 1, of 2 (the last one smaller), and of more tasks than there are."""
    whole = _run_two_steps(case, executor.make_step(case.method, "vmap"))
    for size in (1, 2, TASKS + 3):
        chunked = _run_two_steps(case, executor.make_step(case.method, "chunk", size))
        close(chunked, whole, f"chunks of {size} tasks must give what all {TASKS} tasks do, and")


@needs("step")
def check_compiled_equals_eager(case: Case) -> None:
    """The whole step is one graph for the compiler, with the same numbers."""
    small_case, step = _compile_small_case(case)
    close(
        step(small_case.state(), small_case.data(0)),
        small_case.step(small_case.state(), small_case.data(0)),
        "a compiled step must give what the step itself does, and",
    )


@needs("step")
def check_the_second_call_compiles_nothing(case: Case) -> None:
    """Other episodes, another state and step count: the same graph."""
    small_case, step = _compile_small_case(case)
    state, _ = step(small_case.state(), small_case.data(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for index in (1, 2):
            state, _ = step(state, small_case.data(index))
    assert state.step == 3, f"three steps must count to 3, and state.step is {state.step}"


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
    text = "a step must not depend on the order of its tasks, and"
    found = (actual.meta, actual.opt, permuted_metrics)
    close(found, (expected.meta, expected.opt, metrics), text)
    if expected.lanes is not None:
        text = "the lanes of tasks in another order must be the lanes in that order, and"
        close(actual.lanes, take(expected.lanes, order), text)
