"""Implementations of a workload: this package once per executor, and every installed peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.bench.engines import (
    by_jax,
    by_torchopt,
    in_context,
    in_context_jax,
    l2o,
    l2o_jax,
    native,
    r2d2,
    sampling,
    torch_packages,
)
from metalearn.bench.engines.engine import Engine, LeftOut
from metalearn.bench.problem import Problem
from metalearn.kernels.launch import available

Row = dict[str, Any]
PEERS = ("learn2learn", "higher", "torchopt", "jax", "torch")
ENGINES = ("native", *PEERS)


@dataclass(frozen=True)
class Contender:
    """One engine under one executor: what is built when its turn to be prepared comes."""

    engine: str
    # one for each form; notes on its row what is known by then; raises LeftOut
    build: Callable[[Row], list[Engine]]
    executor: str | None = None  # of native
    chunk: int | None = None
    every_form: bool = False  # a row for each form; else the fastest one is timed

    @property
    def label(self) -> str:
        if self.executor is None:
            return self.engine
        return f"{self.engine} ({self.executor}{f':{self.chunk}' if self.chunk else ''})"


def contenders(
    problem: Problem, engines: Iterable[str], executors: Sequence[str] = ()
) -> list[Contender]:
    """The contenders of `engines`; `executors` replace the ones chosen for this workload."""
    wanted = set(engines)
    if problem.workload.family == "validation":
        return [one for one in _validation(problem) if one.engine in wanted]
    if problem.workload.family == "sampling":
        found = [
            Contender("native", lambda row: [sampling.ours(problem)]),
            Contender("learn2learn", lambda row: sampling.theirs(problem), every_form=True),
        ]
        return [one for one in found if one.engine in wanted]
    found = [_native(problem, executor) for executor in executors or native.candidates(problem)]
    if not executors and problem.device.startswith("cuda"):
        found += _ways_to_replay(problem)
    if isinstance(problem, l2o.LearnedProblem):
        found += [_left_out(name, "does not support learned optimizers") for name in PEERS[:3]]
        found += [
            Contender("jax", lambda row: [l2o_jax.engine(problem)]),
            Contender("torch", lambda row: [l2o.engine(problem)]),
        ]
    elif isinstance(problem, in_context.InContextProblem):
        found += [_left_out(name, "does not support in-context learners") for name in PEERS[:3]]
        found += [
            Contender("jax", lambda row: [in_context_jax.engine(problem)]),
            Contender("torch", lambda row: [in_context.engine(problem)]),
        ]
    else:
        found += [
            Contender("torch", lambda row: [r2d2.engine(problem)])
            if problem.workload.family == "r2d2"
            else _left_out("torch", "plain autograd is timed where no peer has the method"),
            Contender("learn2learn", lambda row: [torch_packages.engine("learn2learn", problem)]),
            Contender("higher", lambda row: [torch_packages.engine("higher", problem)]),
            Contender("torchopt", lambda row: by_torchopt.engines(problem)),
            Contender("jax", lambda row: [by_jax.engine(problem)]),
        ]
    return [one for one in found if one.engine in wanted]


def _left_out(name: str, why: str) -> Contender:
    def build(row: Row) -> list[Engine]:
        del row
        raise LeftOut(f"{name}: {why}")

    return Contender(name, build)


def _native(problem: Problem, text: str) -> Contender:
    if text == "auto":
        return Contender("native", lambda row: [_auto(problem, row)], text)
    choice = native.choice_of(text, problem.workload.tasks)
    return Contender(
        "native", lambda row: [native.engine(problem, choice)], choice.executor, choice.chunk
    )


def _validation(problem: Problem) -> list[Contender]:
    found = [Contender("native", lambda row: [native.validation(problem, False)], "vmap")]
    if problem.device.startswith("cuda"):
        found.append(Contender("native", lambda row: [native.validation(problem, True)], "graph"))
    return found


def _ways_to_replay(problem: Problem) -> list[Contender]:
    """Captured graphs of several steps, and without Triton where there is any."""
    one = native.choice_of("graph", problem.workload.tasks)
    found = [
        Contender("native", lambda row: [native.engine(problem, one, native.REPLAYED)], "graph")
    ]
    if available():
        found.append(
            Contender("native", lambda row: [native.without_triton(problem, one)], "graph")
        )
    return found


def _auto(problem: Problem, row: Row) -> Engine:
    engine, row["chose"], row["why"] = native.chosen(problem)
    return engine
