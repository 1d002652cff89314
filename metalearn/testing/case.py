"""A method built for one small problem, and helpers of the checks of methods."""

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
from metalearn.testing.sentences import expect_close
from metalearn.tree import leaves, named_leaves
from metalearn.types import Episode, Learner, MetaState, Method, NullLedger

F64 = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # the same sums in another order
TASKS = 5
STEPS = (0, 1, 3)
POLICIES = ("none", "query_batch", "support", "support_plus_one", "running")
TRAINING = 60  # meta-steps after which the package's own methods have learned the problem
META_STEPS = 100  # for methods that need the number of meta-steps
# the method that trains each architecture of a method that searches first
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
        """Build the same method with another normalisation, dtype, or options."""
        merged = {**self.options, **options}
        case = method_case(self.component, merged, norm=norm, dtype=dtype, name=self.name)
        return case._replace(training=self.training)

    def on_values(self) -> Case:
        """Build the same method for regression with one target; may raise ConfigError."""
        source = Sinusoid(shots=3, queries=4).build(dtype=F64)
        learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
        method = build(self.component(**self.options), learner, source)
        return self._replace(source=source, method=method)

    def state(self, seed: int = 0) -> MetaState:
        """Return the initial state, with the task state of a batch of tasks."""
        return broadcast_task_state(self.method.init(fold_in(seed, "init")), TASKS)

    def data(self, step: int, seed: int = 0) -> Any:
        """Return the input of one step of the method."""
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
    """Build the method for the small problem, with a small network with tanh."""
    source = Clusters("train", 24)
    source.spec = dataclasses.replace(source.spec, dtype=dtype)
    policy: Any = norm
    learner = MLP(sizes=(8, 7), activation="tanh", norm=policy).build(source.spec)
    instance = component(**options)
    return Case(name or instance.name, component, source, build(instance, learner, source), options)


def build(component: MethodComponent, learner: Learner, source: Any) -> Method:
    """Build the method for the tasks of `source`; a method that searches first runs its search."""
    if component.contains_by_default is None:
        meta_steps = META_STEPS if component.needs_meta_steps else None
        return component.build(learner, source.spec, meta_steps=meta_steps)
    unprepared = component.build(learner, source.spec, contained=CONTAINED)  # type: ignore[call-arg]
    assert unprepared.prepare is not None
    with tempfile.TemporaryDirectory() as folder:
        return unprepared.prepare(source, fold_in(0, "search"), NullLedger(), Path(folder))


Check = TypeVar("Check", bound=Callable[..., None])


def needs(part: str) -> Callable[[Check], Check]:
    """Mark a check that applies only to methods with `part`."""

    def mark(check: Check) -> Check:
        check.needs = part  # type: ignore[attr-defined]
        return check

    return mark


def inapplicable(case: Case, check: Callable[..., None]) -> str:
    """Return why a check does not apply to a method; empty if it applies."""
    part = getattr(check, "needs", None)
    if part is None:
        return ""
    has, reason = NEEDS[part]
    return "" if has(case.method) else reason


# small helpers


def close(found: Any, expected: Any, text: str = "what was found", **tolerance: float) -> None:
    """Assert that leaves are equal within a tolerance; `text` is the sentence up to "differs"."""
    expect_close(found, expected, text, **(tolerance or CLOSE))


def same(a: Any, b: Any) -> bool:
    """Return whether leaves are bitwise equal, by name."""
    left, right = named_leaves(a), named_leaves(b)
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def same_leaves(a: Any, b: Any) -> bool:
    """Return whether the leaves are bitwise equal, in their order."""
    left, right = leaves(a), leaves(b)
    return len(left) == len(right) and all(map(torch.equal, left, right))


def predictions_of(
    case: Case, meta: Any, episode: Episode, steps: Any = STEPS, key: Any = None
) -> torch.Tensor:
    """Return predictions [T, P, M, C] on the queries of `episode`."""
    learned = case.method.learn(meta, episode.support, episode.query.x, steps, key=key)
    predictions: torch.Tensor = learned.predictions
    return predictions


def episodes(case: Case, count: int = TASKS) -> Episode:
    """Sample the same new tasks for every method."""
    sample: Episode = case.source.sample(fold_in(5, "episodes"), count)
    return sample


@functools.cache
def compiled_step(component: MethodComponent) -> Callable[..., Any]:
    """Compile the step as one graph, forward and backward, without the C++ compiler."""
    # Many methods share the code of their step, and one process may compile them all: torch stops
    # recompiling after eight.
    torch._dynamo.config.recompile_limit = 200
    torch._dynamo.config.accumulated_recompile_limit = 2000
    method = method_case(type(component), fields_set(component)).method
    assert method.step is not None
    return torch.compile(method.step, fullgraph=True, dynamic=False, backend="aot_eager")


def fields_set(component: Any, without: Sequence[str] = ("name", "source")) -> dict[str, Any]:
    """Return the options that were passed to a component, without its defaults."""
    names = component.model_fields_set - set(without)
    return {name: getattr(component, name) for name in sorted(names)}
