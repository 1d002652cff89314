"""This project's own step, sampling included, with an executor or the one that auto selects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from metalearn.bench.engines.engine import Engine
from metalearn.bench.problem import CHECK, Problem, synchronise
from metalearn.executors import memory
from metalearn.executors.auto import Work, choose, configured_choice
from metalearn.executors.chunks import workers_on
from metalearn.executors.cuda_graphs import learning_by_graphs
from metalearn.executors.step import TrainStep, build_train_step
from metalearn.executors.timings import ExecutorChoice
from metalearn.scopes.over_tasks import called_by
from metalearn.tree import from_named, named_leaves
from metalearn.types import Episode, MetaState, Params

BETA1 = 0.9  # of the outer Adam: its first moment after one step is (1 - BETA1) times the gradient
REPLAYED = 20  # steps per replay of a captured graph of several steps
STEPS = 2000  # length of the run that auto chooses for, and of the totals


def candidates(problem: Problem) -> tuple[str, ...]:
    """Return the executors worth a row, as in `--executor`: NAME or NAME:CHUNK."""
    if problem.device.startswith("cuda"):
        return ("vmap", "graph", "compiled_graph", "auto")
    if problem.workload.family == "l2o":
        return ("vmap", "compiled_steps")
    if problem.workload.model == "mlp" or problem.workload.family == "in_context":
        return ("vmap", "traced", "compiled", "auto")
    if problem.workload.model == "resnet12":
        return ("chunk:1", "vmap", "auto")  # the compiler needs minutes
    return ("chunk:4", "compiled:4", "compiled_loop", "auto")


def parse_choice(text: str, tasks: int) -> ExecutorChoice:
    """Parse NAME or NAME:CHUNK as the executor of T tasks."""
    name, _, chunk = text.partition(":")
    return configured_choice(name, int(chunk) if chunk else None, tasks, tasks)


def format_choice(choice: ExecutorChoice) -> str:
    """Format a choice, the inverse of `parse_choice`."""
    return choice.executor if choice.chunk is None else f"{choice.executor}:{choice.chunk}"


def engine(problem: Problem, choice: ExecutorChoice, steps: int = 1) -> Engine:
    """Return sampling by our TaskSource, meta-gradient and update by `build_train_step`.

    If `steps` > 1, a captured graph runs that number of steps per call."""
    train_step = build_train_step(
        problem.method,
        problem.source.sample,
        problem.key,
        tasks=problem.workload.tasks,
        device=problem.device,
        executor=choice.executor,
        chunk=choice.chunk,
    )
    return _engine(problem, train_step, steps)


def without_triton(problem: Problem, choice: ExecutorChoice) -> Engine:
    """Return the same with torch's operators instead of Triton's kernels."""
    with _no_triton():
        base = engine(problem, choice)
    step, gradient = _no_triton()(base.step), base.gradient
    assert gradient is not None
    return replace(base, step=step, gradient=_no_triton()(gradient), form="without Triton")


@contextmanager
def _no_triton() -> Iterator[None]:
    previous = os.environ.get("METALEARN_TRITON")
    os.environ["METALEARN_TRITON"] = "0"
    try:
        yield
    finally:
        del os.environ["METALEARN_TRITON"]
        if previous is not None:
            os.environ["METALEARN_TRITON"] = previous


def choose_engine(problem: Problem) -> tuple[Engine, str, str]:
    """Return (engine, executor, reason) after auto's trials for a run of STEPS steps.

    It uses no earlier timings."""
    tasks, state = problem.workload.tasks, fresh(problem)
    prediction, free_bytes = (
        memory.predict(problem.method, state, problem.check),
        memory.room(problem.device),
    )
    max_chunk = tasks if prediction is None else prediction.fits(tasks, free_bytes)
    sizes = tasks, problem.device, STEPS, max_chunk, workers_on(problem.device, None)
    work = Work(problem.method, problem.source.sample, problem.key, state, *sizes)
    trials = choose(work, {})
    train_step = trials.train_steps.get(trials.choice) or work.make(trials.choice)
    return _engine(problem, train_step), format_choice(trials.choice), trials.why


def _engine(problem: Problem, train_step: TrainStep, steps: int = 1) -> Engine:
    state = fresh(problem)
    number = 0

    def step() -> None:
        nonlocal state, number
        if steps == 1:
            state, _ = train_step.step(state, train_step.step_input(number + 1))
        else:
            assert train_step.multi_step is not None
            state, _ = train_step.multi_step(state, number + 1, steps)
        number += steps

    def gradient(episodes: Episode) -> Params:
        # Of the same function that is timed, which samples its own episodes: those of this number
        # are compared.
        assert episodes is problem.check, "ours draws the episodes of the check itself"
        after, _ = train_step.step(fresh(problem), train_step.step_input(CHECK))
        return {
            name: value / (1 - BETA1) for name, value in named_leaves(after.opt["first"]).items()
        }

    form = f"{steps} steps a replay" if steps > 1 else ""
    return Engine(step, gradient, lambda: synchronise(problem.device), form, steps)


def validation(problem: Problem, captured: bool) -> Engine:
    """Return validation on T tasks: S steps on each, and the predictions of their queries."""
    batches, number = [problem.episodes(CHECK + index) for index in range(2)], 0
    meta, points = fresh(problem).meta, (0, problem.workload.inner_steps)
    caller = learning_by_graphs() if captured else None

    def step() -> None:
        nonlocal number
        batch, number = batches[number % 2], number + 1
        with called_by(caller) if caller else nullcontext():
            problem.method.learn(meta, batch.support, batch.query.x, points, batch.info["key"])

    return Engine(step, None, lambda: synchronise(problem.device))


def fresh(problem: Problem) -> MetaState:
    """Return the state before the first step, at the problem's initialization, as copies."""
    state = problem.method.init(problem.key)
    start = {name: value.clone() for name, value in problem.start.items()}
    return state._replace(meta=from_named(state.meta, start))
