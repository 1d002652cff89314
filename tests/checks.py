"""The contract of a Method, as plain functions, and what runs them over a table: a new line is
tested by itself.

A check takes a `Case`, a method built for one small problem in float64. Some checks need a part
that not every method has; `needs` says which and why, and `EXEMPT` names single exceptions with
their reason."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from clusters import Clusters
from method_options import EXEMPT, OPTIONS, built

from metalearn.component import Component
from metalearn.executors import executor
from metalearn.inner.method import broadcast_task_state
from metalearn.models.mlp import MLP
from metalearn.rng import fold_in
from metalearn.tree import leaves, named_leaves, take, tree_map
from metalearn.types import Episode, MetaState, Method

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # the same sums in another order
TASKS = 5
STEPS = (0, 1, 3)
POLICIES = ["none", "query_batch", "support", "support_plus_one", "running"]
GOLDEN = Path(__file__).parent / "golden"


class Case(NamedTuple):
    """One method, ready to be looked at."""

    name: str
    component: type[Component]
    source: Any
    method: Method

    def state(self, seed: int = 0) -> MetaState:
        """A start that is as wide as the batches of tasks."""
        return broadcast_task_state(self.method.init(fold_in(seed, "init")), TASKS)

    def data(self, step: int, seed: int = 0) -> Any:
        """What one step of the method consumes."""
        key = fold_in(seed, "train", step)
        return (
            self.source.examples(key, 32)
            if self.method.traits.consumes == "examples"
            else self.source.sample(key, TASKS)
        )

    def step(self, state: MetaState, data: Any) -> tuple[MetaState, Any]:
        assert self.method.step is not None
        return self.method.step(state, data)


def case(
    name: str,
    component: type[Component],
    norm: str = "none",
    dtype: torch.dtype = F64,
    **options: Any,
) -> Case:
    """The method on tasks of 3 ways, 2 shots, 4 queries of 6 numbers; a small network with tanh."""
    source = Clusters("train", 24)
    source.spec = dataclasses.replace(source.spec, dtype=dtype)
    learner = MLP(sizes=(8, 7), activation="tanh", norm=norm).build(source.spec)
    settings = {**OPTIONS.get(name, {}), **options}
    return Case(name, component, source, built(component(**settings), learner, source))


#
# the parametrisation

Check = Callable[[Case], None]
NEEDS = {
    "step": (lambda method: method.step is not None, "nothing is learned across tasks"),
    "task_grad": (
        lambda method: method.task_grad is not None,
        "its step has no tasks: one batch of examples is one graph",
    ),
}


def needs(part: str) -> Callable[[Check], Check]:
    """Mark a check that only methods with `part` can be asked for."""

    def mark(check: Check) -> Check:
        check.needs = part  # type: ignore[attr-defined]
        return check

    return mark


def why_not(name: str, component: type[Component], check: Check) -> str:
    """Why a check does not apply to a method; empty where it does, and where the method cannot even
    be built.
    """
    part = getattr(check, "needs", None)
    if part is not None:
        try:
            method = case(name, component).method
        except Exception:  # the check itself will meet the error and show it
            return ""
        has, why = NEEDS[part]
        if not has(method):
            return why
    return EXEMPT.get((name, check.__name__), "")


def parametrize(table: dict[str, type[Component]], checks: Iterable[Check]) -> pytest.MarkDecorator:
    """`@parametrize(TABLE, CHECKS) def test(name, component, check)`: every check that applies to
    each line.
    """
    pairs = [
        (name, part, check)
        for name, part in table.items()
        for check in checks
        if not why_not(name, part, check)
    ]
    return pytest.mark.parametrize(
        ("name", "component", "check"),
        pairs,
        ids=[f"{name}-{check.__name__.removeprefix('check_')}" for name, _, check in pairs],
    )


# small helpers


def close(a: Any, b: Any, **tolerance: float) -> None:
    """The same leaves under the same names."""
    torch.testing.assert_close(named_leaves(a), named_leaves(b), **(tolerance or CLOSE))


def same(a: Any, b: Any) -> bool:
    """The same leaves, bit for bit."""
    mine, other = named_leaves(a), named_leaves(b)
    return mine.keys() == other.keys() and all(
        torch.equal(mine[name], other[name]) for name in mine
    )


def predictions_of(
    given: Case, meta: Any, episode: Episode, steps: Any = STEPS, key: Any = None
) -> torch.Tensor:
    predictions: torch.Tensor = given.method.learn(
        meta, episode.support, episode.query.x, steps, key=key
    ).predictions
    return predictions


def episodes(given: Case, count: int = TASKS) -> Episode:
    found: Episode = given.source.sample(fold_in(5, "episodes"), count)
    return found


@functools.cache
def compiled(name: str, component: type[Component]) -> tuple[Case, Callable[..., Any]]:
    """The step as one graph, forward and backward, run without the C++ compiler; one inner step is
    enough.
    """
    given = case(
        name, component, **({"inner_steps": 1} if "inner_steps" in component.model_fields else {})
    )
    assert given.method.step is not None
    # Many methods share the code of their step, and one process may meet them all: torch gives up
    # after eight.
    torch._dynamo.config.recompile_limit = 200
    torch._dynamo.config.accumulated_recompile_limit = 2000
    return given, torch.compile(
        given.method.step, fullgraph=True, dynamic=False, backend="aot_eager"
    )


# the checks, 1-4


def check_component(given: Case) -> None:
    """Frozen, default-constructible, through JSON and back; a sentence for every field; unknown
    fields refused.
    """
    made = given.component()
    other = given.component(**OPTIONS.get(given.name, {}))
    for one in (made, other):
        again = given.component.model_validate(json.loads(json.dumps(one.model_dump(mode="json"))))
        assert again == one and hash(again) == hash(one)
    field = next(iter(given.component.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(made, field, getattr(made, field))
    with pytest.raises(ValueError, match="not_a_field"):
        given.component(not_a_field=1)
    assert made.name == given.name and given.component.sentence().endswith(".")  # type: ignore[attr-defined]
    assert all(info.description for info in given.component.model_fields.values())
    acts = [info.json_schema_extra["acts"] for info in given.component.model_fields.values()]  # type: ignore[index,call-overload]
    assert set(acts) <= {"train", "adapt", "both"}


def check_init_is_a_function_of_the_key(given: Case) -> None:
    """The same key gives the same bits whatever torch's own generator holds; another key gives
    other numbers.
    """
    before = torch.get_rng_state()
    first = given.method.init(fold_in(0, "init"))
    assert torch.equal(torch.get_rng_state(), before)  # torch's generator is not drawn from
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
    """Structure, shapes, dtypes, in float64 and float32; metrics are numbers without a graph; the
    count goes up.
    """
    for dtype in (F64, torch.float32):
        one = case(given.name, given.component, dtype=dtype)
        state = one.state()
        data = tree_map(
            lambda leaf, to=dtype: leaf.to(to) if leaf.is_floating_point() else leaf, one.data(0)
        )
        after, metrics = one.step(state, data)
        old, new = named_leaves(state), named_leaves(after)
        assert {n: (v.shape, v.dtype) for n, v in old.items()} == {
            n: (v.shape, v.dtype) for n, v in new.items()
        }
        assert {value.dtype for value in new.values()} == {dtype}
        assert metrics and all(
            v.shape == () and v.dtype == dtype and v.isfinite() for v in metrics.values()
        )
        assert not any(v.requires_grad for v in [*new.values(), *metrics.values()])
        assert after.step == 1


# checks of executors


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
    small, step = compiled(given.name, given.component)
    close(step(small.state(), small.data(0)), small.step(small.state(), small.data(0)))


@needs("step")
def check_the_second_call_compiles_nothing(given: Case) -> None:
    """Other episodes, another state and step count: the same graph."""
    small, step = compiled(given.name, given.component)
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
