"""A method built for one small problem, and what the checks of methods share."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from metalearn.algorithms import MAML
from metalearn.component import MethodComponent
from metalearn.inner.method import broadcast_task_state
from metalearn.inner.rules import Adam
from metalearn.models.mlp import MLP
from metalearn.rng import fold_in
from metalearn.tasks import Sinusoid
from metalearn.testing.clusters import Clusters
from metalearn.tree import leaves, named_leaves
from metalearn.types import Episode, Learner, MetaState, Method, NullLedger

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # the same sums in another order
TASKS = 5
STEPS = (0, 1, 3)
POLICIES = ("none", "query_batch", "support", "support_plus_one", "running")
TRAINING = 60  # meta-steps after which the package's own methods have learned the problem
META_STEPS = 100  # of methods that need their number
# what a method that searches first learns each architecture with
CONTAINED = MAML(inner_steps=2, inner_lr=0.3, outer=Adam(lr=0.02))
NEEDS: dict[str, tuple[Callable[[Method], bool], str]] = {
    "step": (lambda method: method.step is not None, "nothing is learned across tasks"),
    "task_grad": (
        lambda method: method.task_grad is not None,
        "its step has no tasks: one batch of examples is one graph",
    ),
}


class Case(NamedTuple):
    """One method, built for tasks of 3 ways, 2 shots, 4 queries of 6 numbers."""

    name: str
    component: type[MethodComponent]
    source: Any
    method: Method
    options: Mapping[str, Any]
    training: int = TRAINING  # meta-steps that it may take to learn the problem

    def rebuild(self, norm: str = "none", dtype: torch.dtype = F64, **options: Any) -> Case:
        """The same method with another normalisation, type, or options."""
        merged = {**self.options, **options}
        made = method_case(self.component, merged, norm=norm, dtype=dtype, name=self.name)
        return made._replace(training=self.training)

    def on_values(self) -> Case:
        """The same method on regression with one target; ConfigError where it refuses it."""
        source = Sinusoid(shots=3, queries=4).build(dtype=F64)
        learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
        method = build(self.component(**self.options), learner, source)
        return self._replace(source=source, method=method)

    def state(self, seed: int = 0) -> MetaState:
        """A start that is as wide as the batches of tasks."""
        return broadcast_task_state(self.method.init(fold_in(seed, "init")), TASKS)

    def data(self, step: int, seed: int = 0) -> Any:
        """What one step of the method consumes."""
        key = fold_in(seed, "train", step)
        if self.method.traits.consumes == "examples":
            return self.source.examples(key, 32)
        return self.source.sample(key, TASKS)

    def step(self, state: MetaState, data: Any) -> tuple[MetaState, Any]:
        assert self.method.step is not None
        return self.method.step(state, data)


def method_case(
    component: type[MethodComponent],
    options: Mapping[str, Any],
    *,
    norm: str = "none",
    dtype: torch.dtype = F64,
    name: str = "",
) -> Case:
    """The method on the small problem, with a small network with tanh."""
    source = Clusters("train", 24)
    source.spec = dataclasses.replace(source.spec, dtype=dtype)
    policy: Any = norm
    learner = MLP(sizes=(8, 7), activation="tanh", norm=policy).build(source.spec)
    made = component(**options)
    return Case(name or made.name, component, source, build(made, learner, source), options)


def build(component: MethodComponent, learner: Learner, source: Any) -> Method:
    """The method for the tasks of `source`; of one that searches first, what its search returns."""
    if component.contains_by_default is None:
        meta_steps = META_STEPS if component.needs_meta_steps else None
        return component.build(learner, source.spec, meta_steps=meta_steps)
    waiting = component.build(learner, source.spec, contained=CONTAINED)  # type: ignore[call-arg]
    assert waiting.prepare is not None
    with tempfile.TemporaryDirectory() as folder:
        return waiting.prepare(source, fold_in(0, "search"), NullLedger(), Path(folder))


Check = TypeVar("Check", bound=Callable[..., None])


def needs(part: str) -> Callable[[Check], Check]:
    """Mark a check that applies only to methods with `part`."""

    def mark(check: Check) -> Check:
        check.needs = part  # type: ignore[attr-defined]
        return check

    return mark


def inapplicable(given: Case, check: Callable[..., None]) -> str:
    """Why a check does not apply to a method; empty where it does."""
    part = getattr(check, "needs", None)
    if part is None:
        return ""
    has, why = NEEDS[part]
    return "" if has(given.method) else why


# small helpers


def close(a: Any, b: Any, **tolerance: Any) -> None:
    """Assert that leaves are equal, by name, within a tolerance."""
    torch.testing.assert_close(named_leaves(a), named_leaves(b), **(tolerance or CLOSE))


def same(a: Any, b: Any) -> bool:
    """Whether leaves are equal, by name, bit for bit."""
    mine, other = named_leaves(a), named_leaves(b)
    return mine.keys() == other.keys() and all(
        torch.equal(mine[name], other[name]) for name in mine
    )


def same_leaves(a: Any, b: Any) -> bool:
    """Whether the leaves are equal in their order, bit for bit."""
    one, two = leaves(a), leaves(b)
    return len(one) == len(two) and all(map(torch.equal, one, two))


def predictions_of(
    given: Case, meta: Any, episode: Episode, steps: Any = STEPS, key: Any = None
) -> torch.Tensor:
    """Predictions [T, P, M, C] on the queries of `episode`."""
    learned = given.method.learn(meta, episode.support, episode.query.x, steps, key=key)
    predictions: torch.Tensor = learned.predictions
    return predictions


def episodes(given: Case, count: int = TASKS) -> Episode:
    """The same new tasks for every method."""
    found: Episode = given.source.sample(fold_in(5, "episodes"), count)
    return found


@functools.cache
def compiled_step(component: MethodComponent) -> Callable[..., Any]:
    """The step as one graph, forward and backward, run without the C++ compiler."""
    # Many methods share the code of their step, and one process may meet them all: torch gives up
    # after eight.
    torch._dynamo.config.recompile_limit = 200
    torch._dynamo.config.accumulated_recompile_limit = 2000
    method = method_case(type(component), fields_set(component)).method
    assert method.step is not None
    return torch.compile(method.step, fullgraph=True, dynamic=False, backend="aot_eager")


def fields_set(component: Any, without: Sequence[str] = ("name", "source")) -> dict[str, Any]:
    """The options that a component was given, as opposed to its defaults."""
    chosen = component.model_fields_set - set(without)
    return {name: getattr(component, name) for name in sorted(chosen)}
