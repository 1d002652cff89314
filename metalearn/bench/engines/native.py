"""This project's own step, sampling included, by one executor or the one that auto picks."""

from __future__ import annotations

from metalearn.bench.engines.engine import Engine
from metalearn.bench.problem import CHECK, Problem, synchronise
from metalearn.executors import memory
from metalearn.executors.auto import Work, choose, configured_choice
from metalearn.executors.pieces import workers_on
from metalearn.executors.step import Executable, make_step_fn
from metalearn.executors.timings import ExecutorChoice
from metalearn.tree import from_named, named_leaves
from metalearn.types import Episode, MetaState, Params

BETA1 = 0.9  # of the outer Adam: its first moment after one step is (1 - BETA1) times the gradient
STEPS = 2000  # length of the run that auto chooses for, and of which totals are given


def candidates(problem: Problem) -> tuple[str, ...]:
    """What is worth a row here, as `--executor` writes it: NAME or NAME:CHUNK."""
    if problem.device.startswith("cuda"):
        return ("vmap", "graph", "compiled_graph", "auto")
    if problem.workload.family == "l2o":
        return ("vmap", "compiled_steps")
    if problem.workload.model == "mlp" or problem.workload.family == "in_context":
        return ("vmap", "traced", "compiled", "auto")
    if problem.workload.model == "resnet12":
        return ("chunk:1", "vmap", "auto")  # the compiler needs minutes
    return ("chunk:4", "compiled:4", "compiled_loop", "auto")


def choice_of(text: str, tasks: int) -> ExecutorChoice:
    """NAME or NAME:CHUNK as a way of running T tasks."""
    name, _, chunk = text.partition(":")
    return configured_choice(name, int(chunk) if chunk else None, tasks, tasks)


def text_of(choice: ExecutorChoice) -> str:
    """The inverse of `choice_of`."""
    return choice.executor if choice.chunk is None else f"{choice.executor}:{choice.chunk}"


def engine(problem: Problem, choice: ExecutorChoice) -> Engine:
    """Sampling by our TaskSource, meta-gradient and update by `make_step_fn`."""
    made = make_step_fn(
        problem.method,
        problem.source.sample,
        problem.key,
        tasks=problem.workload.tasks,
        device=problem.device,
        executor=choice.executor,
        chunk=choice.chunk,
    )
    return _engine(problem, made)


def chosen(problem: Problem) -> tuple[Engine, str, str]:
    """(engine, executor, reason) after auto's trials for a run of STEPS steps.

    Nothing is known of it beforehand."""
    tasks, state = problem.workload.tasks, fresh(problem)
    found, free = memory.predict(problem.method, state, problem.check), memory.room(problem.device)
    most = tasks if found is None else found.fits(tasks, free)
    sizes = tasks, problem.device, STEPS, most, workers_on(problem.device, None)
    work = Work(problem.method, problem.source.sample, problem.key, state, *sizes)
    trials = choose(work, {})
    made = trials.made.get(trials.choice) or work.make(trials.choice)
    return _engine(problem, made), text_of(trials.choice), trials.why


def _engine(problem: Problem, made: Executable) -> Engine:
    state = fresh(problem)
    number = 0

    def step() -> None:
        nonlocal state, number
        number += 1
        state, _ = made.step(state, made.sample(number))

    def gradient(episodes: Episode) -> Params:
        # Of the very function that is timed, which draws its own episodes: those of this number are
        # the ones compared.
        assert episodes is problem.check, "ours draws the episodes of the check itself"
        after, _ = made.step(fresh(problem), made.sample(CHECK))
        return {
            name: value / (1 - BETA1) for name, value in named_leaves(after.opt["first"]).items()
        }

    return Engine(step, gradient, lambda: synchronise(problem.device))


def fresh(problem: Problem) -> MetaState:
    """The state before the first step, at the problem's start; leaves of its own."""
    state = problem.method.init(problem.key)
    start = {name: value.clone() for name, value in problem.start.items()}
    return state._replace(meta=from_named(state.meta, start))
