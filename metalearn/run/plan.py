"""Before step 1: what memory holds, which executor runs, what a precision costs; and the function
that makes steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metalearn.config.build import Parts, draw_of
from metalearn.config.experiment import Experiment
from metalearn.config.signature import signature
from metalearn.distributed.shared_work import led_advance, splits
from metalearn.distributed.team import ALONE, Team
from metalearn.errors import ConfigError
from metalearn.executors import memory
from metalearn.executors.auto import SHORT, Trials, Work, asked_for, choose, clocks, seconds_since
from metalearn.executors.executor import Advance, in_pieces
from metalearn.executors.nonfinite import guarded
from metalearn.executors.pieces import workers_on
from metalearn.executors.precision import FAR, gradient_error, with_precision, with_tf32
from metalearn.executors.sharded import make_advance, share_of
from metalearn.executors.timings import ExecutorChoice, Timing, load, save
from metalearn.rng import fold_in
from metalearn.tree import take
from metalearn.types import MetaState, Metrics

FEW = 2  # tasks whose gradient is compared with that in full precision


@dataclass
class Decision:
    """How a run's steps are made, and what was found out on the way."""

    way: ExecutorChoice
    facts: dict[str, Any] = field(default_factory=dict)  # for environment.json
    advance: Advance | None = None  # where a trial has made it
    why: str = "asked for"
    warnings: list[str] = field(default_factory=list)
    first: float | None = None  # seconds of the first call, where a trial has made it


def decide(experiment: Experiment, parts: Parts, state: MetaState, team: Team = ALONE) -> Decision:
    """The executor and chunk of a run, memory predicted, auto's trials made; ConfigError for what
    cannot be done.

    Of several processes rank 0 decides, by what its own tasks take.
    """
    shared = splits(team, parts.method)
    if shared:
        own = share_of(experiment.run.tasks_per_step, team.rank, team.size)[1]
        state = team.own(state, 0, own)
        experiment = experiment.replace(
            run=experiment.run.model_copy(update={"tasks_per_step": own})
        )
    decision = _decided(experiment, parts, state)
    if shared:
        decision.advance = decision.first = None  # what a trial has made steps by itself
    return decision


def _decided(experiment: Experiment, parts: Parts, state: MetaState) -> Decision:
    run, method = (
        experiment.run,
        with_precision(
            parts.method, experiment.run.precision, experiment.run.checkpoint_inner, parts.device
        ),
    )
    if parts.method.step is None or run.meta_steps == 0 or run.engine != "native":
        return Decision(
            asked_for("vmap" if run.executor == "auto" else run.executor, run.chunk, 1, 1)
        )
    draw, key = draw_of(experiment, parts), fold_in(experiment.run.seeds[0], "train")
    decision = Decision(ExecutorChoice(run.executor, run.chunk))
    workers = workers_on(parts.device, run.workers)
    most = _fitting(experiment, parts, state, decision, draw(fold_in(key, 0)))
    if run.executor != "auto":
        decision.way = asked_for(run.executor, run.chunk, run.tasks_per_step, most, workers)
    else:
        sizes = run.tasks_per_step, parts.device, run.meta_steps, most, workers
        work = Work(
            method,
            lambda key, count, first: draw(key),
            key,
            state,
            *sizes,
            compiling=not run.checkpoint_inner,
        )
        name = signature(experiment, parts.train.spec, parts.device)
        choice = choose(work, load(name), run.chunk)
        save(name, choice.timings)
        _take(decision, choice)
    _say_peak(decision, run.tasks_per_step, workers)
    return decision


def _take(decision: Decision, choice: Trials) -> None:
    decision.way, decision.why = choice.choice, choice.why
    if choice.choice in choice.made:
        made = choice.made[choice.choice]
        decision.advance = lambda state, number: made.step(state, made.sample(number))
        decision.first = choice.timings[choice.choice].first
    decision.facts["executor"] = choice.record()


def _fitting(
    experiment: Experiment, parts: Parts, state: MetaState, decision: Decision, data: Any
) -> int:
    """The number of tasks at once that memory holds; writes down what was predicted and what a
    precision costs.
    """
    run, method = (
        experiment.run,
        with_precision(
            parts.method, experiment.run.precision, experiment.run.checkpoint_inner, parts.device
        ),
    )
    if parts.method.task_grad is None:
        return run.tasks_per_step
    few = take(data, slice(0, FEW))
    if run.precision != "float32":
        error = gradient_error(parts.method, method, state, few, run.precision)
        decision.facts["precision"] = {"precision": run.precision, "gradient_error": error}
    if run.checkpoint_inner:
        exact = with_precision(parts.method, "float32", run.checkpoint_inner, parts.device)
        error = gradient_error(parts.method, exact, state, few, "float32")
        if error is None or not error < FAR:
            text = (
                f"changes the gradient of {experiment.learns.name} by {error:.0e}: a part "
                f"of it flows past `adapt`"
            )
            raise ConfigError(("run.checkpoint_inner", f"{text}; leave it out"))
    found, room = memory.predict(method, state, data), memory.room(parts.device)
    if found is None:
        return run.tasks_per_step
    decision.facts["memory"] = {**found._asdict(), "room": room}
    return found.fits(run.tasks_per_step, room)


def _say_peak(decision: Decision, tasks: int, workers: int) -> None:
    facts = decision.facts.get("memory")
    if facts is None:
        return
    known = {"vmap": tasks, "traced": tasks, "loop": 1, "compiled_loop": 1}
    at_once = known.get(decision.way.executor, decision.way.chunk or tasks)
    if in_pieces(decision.way.executor, decision.way.chunk):
        at_once *= workers
    peak = memory.Memory(facts["held"], facts["fixed"], facts["each"]).peak(min(tasks, at_once))
    facts["predicted_peak"] = peak
    if facts["room"] is not None and peak > facts["room"]:
        decision.warnings.append(
            f"warning: {decision.way} is predicted to take {peak / 1e9:.1f} GB, and "
            f"{facts['room'] / 1e9:.1f} GB are "
            "free: a smaller run.chunk, or run.checkpoint_inner=true, takes less"
        )


class Clock:
    """An Advance that notes how long its calls take, the first (which may compile) apart."""

    def __init__(self, advance: Advance, first: float | None) -> None:
        self._advance, self.first, self.steps, self.seconds = advance, first, 0, 0.0

    def __call__(self, state: MetaState, number: int) -> tuple[MetaState, Metrics]:
        begin = clocks()
        result = self._advance(state, number)
        seconds = seconds_since(begin, "cpu")
        if self.first is None:
            self.first = seconds
        else:
            self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        return result


def clock_of(
    experiment: Experiment, parts: Parts, decision: Decision | None, team: Team = ALONE
) -> Clock:
    """The steps of a run as config.yaml says, ready to be made."""
    run = experiment.run
    if splits(team, parts.method):
        return Clock(led_advance(team, experiment, parts), None)
    advance = decision.advance if decision is not None else None
    if advance is None:
        method = with_precision(parts.method, run.precision, run.checkpoint_inner, parts.device)
        key, draw = fold_in(run.seeds[0], "train"), draw_of(experiment, parts)
        advance = make_advance(
            method,
            draw,
            key,
            run.tasks_per_step,
            parts.device,
            run.executor,
            run.chunk,
            run.workers,
        )
    advance = guarded(with_tf32(advance, run.precision), run.on_nan)
    return Clock(advance, decision.first if decision is not None else None)


def learn_from(clock: Clock, experiment: Experiment, parts: Parts) -> None:
    """Remember how fast a training was; on CUDA calls return before their work is done, so that
    trials alone tell.
    """
    run = experiment.run
    if (
        clock.steps < SHORT
        or clock.first is None
        or parts.device != "cpu"
        or run.engine != "native"
    ):
        return
    timing = Timing(clock.first, clock.seconds / clock.steps)
    choice = ExecutorChoice(run.executor, run.chunk)
    save(signature(experiment, parts.train.spec, parts.device), {choice: timing})
