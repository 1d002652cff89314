"""Every method of the tables against the common suite; executors; the recorded first steps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from checks import (
    GOLDEN,
    TASKS,
    Case,
    Check,
    case,
    close,
    golden_rows,
    parametrize,
    why_not,
)
from method_options import EXEMPT

from metalearn.component import MethodComponent
from metalearn.config.registry import METHODS
from metalearn.executors import executor, trace
from metalearn.rng import fold_in
from metalearn.testing import METHOD_CHECKS
from metalearn.types import MetaState


@parametrize(METHODS, METHOD_CHECKS)
def test_every_method(name: str, component: type[MethodComponent], check: Check) -> None:
    check(case(name, component))


def test_exceptions_name_methods_and_checks_that_exist() -> None:
    names = {check.__name__ for check in METHOD_CHECKS}
    assert len(names) >= 14
    assert all(name in METHODS and check in names for name, check in EXEMPT)
    applied = {
        name: [not why_not(name, part, check) for check in METHOD_CHECKS]
        for name, part in METHODS.items()
    }
    assert all(
        any(marks[place] for marks in applied.values()) for place in range(len(METHOD_CHECKS))
    )
    assert min(sum(marks) for marks in applied.values()) >= 6, applied


# Newton steps on a network with kinks make each step's rounding about tenfold: 1e-15 at the first,
# 1e-9 at the twelfth and 1e-4 at the last between two kinds of CPU. (steps at the limit of all
# methods, limit of the others)
ENLARGES_ROUNDING = {"imaml_hessian_free": (12, 1e-3)}


@pytest.mark.parametrize("name", METHODS)
def test_the_first_steps_are_as_recorded(name: str) -> None:
    """Losses of 20 steps; a change that should move no number leaves tests/golden as it is."""
    given = case(name, METHODS[name])
    path = GOLDEN / f"{name}.jsonl"
    if given.method.step is None:
        assert not path.exists()
        return
    assert path.exists(), (
        f"a new method: run `python tests/golden/regenerate.py {name}` and look at what it wrote"
    )
    recorded = [json.loads(line) for line in path.read_text().splitlines()]
    found = golden_rows(given)
    assert len(found) == len(recorded) == 20
    steps, later = ENLARGES_ROUNDING.get(name, (20, 1e-7))
    for place, (new, old) in enumerate(zip(found, recorded, strict=True)):
        assert new == pytest.approx(old, rel=1e-7 if place < steps else later, abs=1e-10)


def test_golden_files_belong_to_methods() -> None:
    assert {path.stem for path in GOLDEN.glob("*.jsonl")} <= set(METHODS)


# executors


def _after(given: Case, step: Any) -> Any:
    state: MetaState = given.state()
    for number in range(2):
        state, metrics = step(state, given.data(number))
    return state, metrics


@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_one_compiled_task_in_a_loop_equals_eager(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compiled_loop`, with lanes and without; traced and run without the C++ compiler."""
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)
    given = case(name, METHODS[name], inner_steps=1)
    close(
        _after(given, executor.make_step(given.method, "compiled_loop")),
        _after(given, given.method.step),
    )


def test_a_method_that_learns_nothing_across_tasks_has_no_executor() -> None:
    with pytest.raises(ValueError, match="learns nothing"):
        executor.make_step(case("scratch", METHODS["scratch"]).method, "vmap")


def test_lanes_are_made_for_a_number_of_tasks_and_keep_it() -> None:
    """One lane is copied at the first step; another number of tasks later is refused with a
    sentence."""
    given = case("reptile", METHODS["reptile"])
    state = given.method.init(fold_in(0, "init"))
    assert state.lanes is not None and state.lanes["count"].shape == (1,)
    state, _ = given.step(state, given.data(0))
    assert state.lanes["count"].shape == (TASKS,)
    with pytest.raises(ValueError, match="lanes for 5 tasks"):
        given.step(state, given.source.sample(fold_in(0), 3))
