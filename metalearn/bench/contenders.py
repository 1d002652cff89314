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
    """One engine with one executor, built when it is prepared."""

    engine: str
    # one engine per form; adds facts to its row; raises LeftOut
    build: Callable[[Row], list[Engine]]
    executor: str | None = None  # of native
    chunk: int | None = None
    every_form: bool = False  # a row per form; else the fastest one is timed

    @property
    def label(self) -> str:
        if self.executor is None:
            return self.engine
        return f"{self.engine} ({self.executor}{f':{self.chunk}' if self.chunk else ''})"


def contenders(
    problem: Problem, engines: Iterable[str], executors: Sequence[str] = ()
) -> list[Contender]:
    """Return the contenders of `engines`; `executors` replace the workload's own."""
    names = set(engines)
    if problem.workload.family == "validation":
        return [contender for contender in _validation(problem) if contender.engine in names]
    if problem.workload.family == "sampling":
        result = [
            Contender("native", lambda row: [sampling.ours(problem)]),
            Contender("learn2learn", lambda row: sampling.theirs(problem), every_form=True),
        ]
        return [contender for contender in result if contender.engine in names]
    result = [_native(problem, executor) for executor in executors or native.candidates(problem)]
    if not executors and problem.device.startswith("cuda"):
        result += _replay_contenders(problem)
    if isinstance(problem, l2o.LearnedProblem):
        result += [_skip(name, "does not support learned optimizers") for name in PEERS[:3]]
        result += [
            Contender("jax", lambda row: [l2o_jax.engine(problem)]),
            Contender("torch", lambda row: [l2o.engine(problem)]),
        ]
    elif isinstance(problem, in_context.InContextProblem):
        result += [_skip(name, "does not support in-context learners") for name in PEERS[:3]]
        result += [
            Contender("jax", lambda row: [in_context_jax.engine(problem)]),
            Contender("torch", lambda row: [in_context.engine(problem)]),
        ]
    else:
        result += [
            Contender("torch", lambda row: [r2d2.engine(problem)])
            if problem.workload.family == "r2d2"
            else _skip("torch", "plain autograd is timed where no peer has the method"),
            Contender("learn2learn", lambda row: [torch_packages.engine("learn2learn", problem)]),
            Contender("higher", lambda row: [torch_packages.engine("higher", problem)]),
            Contender("torchopt", lambda row: by_torchopt.engines(problem)),
            Contender("jax", lambda row: [by_jax.engine(problem)]),
        ]
    return [contender for contender in result if contender.engine in names]


def _skip(name: str, why: str) -> Contender:
    def build(row: Row) -> list[Engine]:
        del row
        raise LeftOut(f"{name}: {why}")

    return Contender(name, build)


def _native(problem: Problem, text: str) -> Contender:
    if text == "auto":
        return Contender("native", lambda row: [_auto(problem, row)], text)
    choice = native.parse_choice(text, problem.workload.tasks)
    return Contender(
        "native", lambda row: [native.engine(problem, choice)], choice.executor, choice.chunk
    )


def _validation(problem: Problem) -> list[Contender]:
    result = [Contender("native", lambda row: [native.validation(problem, False)], "vmap")]
    if problem.device.startswith("cuda"):
        result.append(Contender("native", lambda row: [native.validation(problem, True)], "graph"))
    return result


def _replay_contenders(problem: Problem) -> list[Contender]:
    """Return captured graphs of several steps, and one without Triton if it is available."""
    choice = native.parse_choice("graph", problem.workload.tasks)
    result = [
        Contender("native", lambda row: [native.engine(problem, choice, native.REPLAYED)], "graph")
    ]
    if available():
        result.append(
            Contender("native", lambda row: [native.without_triton(problem, choice)], "graph")
        )
    return result


def _auto(problem: Problem, row: Row) -> Engine:
    engine, row["chose"], row["why"] = native.choose_engine(problem)
    return engine
