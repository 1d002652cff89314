"""This project's own step, sampling included, as the training loop makes it: in one way, or in the
one auto picks.
"""

from __future__ import annotations

from typing import Any

from metalearn.bench.engine import Engine
from metalearn.bench.problem import CHECK, Problem, synchronise
from metalearn.executors import memory
from metalearn.executors.auto import Work, asked_for, choose
from metalearn.executors.executor import Advance
from metalearn.executors.sharded import make_advance
from metalearn.executors.timings import Way
from metalearn.tree import named_leaves
from metalearn.types import Episode, Key, MetaState, Params

BETA1 = 0.9  # of the outer Adam: its first moment after one step is (1 - BETA1) times the gradient
STEPS = 2000  # length of the run that auto chooses for, and of which totals are given


def candidates(problem: Problem) -> tuple[str, ...]:
    """What is worth a row here, as `--executor` writes it: NAME or NAME:CHUNK."""
    if problem.device.startswith("cuda"):
        return ("vmap", "graph", "compiled_graph", "auto")
    if problem.workload.family == "l2o":
        return ("vmap", "compiled_steps")
    if problem.workload.model == "mlp":
        return ("vmap", "traced", "compiled", "auto")
    return ("chunk:4", "compiled:4", "compiled_loop", "auto")


def way_of(text: str, tasks: int) -> Way:
    """NAME or NAME:CHUNK as a way of running T tasks."""
    name, _, chunk = text.partition(":")
    return asked_for(name, int(chunk) if chunk else None, tasks, tasks)


def text_of(way: Way) -> str:
    """The way back of `way_of`."""
    return way.executor if way.chunk is None else f"{way.executor}:{way.chunk}"


def engine(problem: Problem, way: Way) -> Engine:
    """Sampling by our TaskSource, meta-gradient and update by `make_advance`."""
    tasks = problem.workload.tasks
    return _engine(
        problem,
        make_advance(
            problem.method,
            _draw(problem),
            problem.key,
            tasks,
            problem.device,
            way.executor,
            way.chunk,
        ),
    )


def chosen(problem: Problem) -> tuple[Engine, str, str]:
    """(engine, way, why) after auto's trials for a run of STEPS steps, of which nothing is known
    beforehand.
    """
    tasks, state = problem.workload.tasks, fresh(problem)
    most, found, room = (
        tasks,
        memory.predict(problem.method, state, problem.check),
        memory.room(problem.device),
    )
    if found is not None:
        most = found.fits(tasks, room)
    work = Work(
        problem.method, _draw(problem), problem.key, state, tasks, problem.device, STEPS, most
    )
    choice = choose(work, {})
    advance = choice.ready.get(choice.way) or work.advance(choice.way)
    return _engine(problem, advance), text_of(choice.way), choice.why


def _draw(problem: Problem) -> Any:
    source, tasks = problem.source, problem.workload.tasks

    def draw(key: Key) -> Any:
        return source.sample(key, tasks)

    return draw


def _engine(problem: Problem, advance: Advance) -> Engine:
    state = fresh(problem)
    number = 0

    def step() -> None:
        nonlocal state, number
        number += 1
        state, _ = advance(state, number)

    def gradient(episodes: Episode) -> Params:
        # Of the very function that is timed, which draws its own episodes: those of this number are
        # the ones compared.
        assert episodes is problem.check, "ours draws the episodes of the check itself"
        after, _ = advance(fresh(problem), CHECK)
        return {
            name: value / (1 - BETA1) for name, value in named_leaves(after.opt["first"]).items()
        }

    return Engine(step, gradient, lambda: synchronise(problem.device))


def fresh(problem: Problem) -> MetaState:
    """The state before the first step, at the problem's start; leaves of its own."""
    state = problem.method.init(problem.key)
    return state._replace(meta={name: value.clone() for name, value in problem.start.items()})
