"""Timed steps of executors, in turns, so that whatever else the machine does hits them alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from metalearn.executors.executor import COMPILED
from metalearn.executors.step import TrainStep
from metalearn.executors.timings import ExecutorChoice, Timing, with_warm_cache
from metalearn.types import MetaState

BUDGET = 0.03  # share of a run that the trials of eager executors may take
DROP = 1.5  # an executor whose first two steps are so much slower than the best is timed no more
REPEATS, LONG = 5, 0.2  # timed steps of a trial, and seconds after which one has shown enough
QUIET = 1.25  # times its least from which on a step was disturbed by other programs
EAGER = ("vmap", "chunk", "loop")


class Trainable(Protocol):
    """What trials read of the work (auto.Work) whose steps they time."""

    @property
    def state(self) -> MetaState: ...

    @property
    def steps(self) -> int: ...

    @property
    def device(self) -> str: ...

    def make(self, choice: ExecutorChoice) -> TrainStep:
        """The step under an executor."""
        ...


@dataclass
class ExecutorTrials:
    """An executor, the reason for it, and the timings behind it."""

    choice: ExecutorChoice
    why: str = ""
    timings: dict[ExecutorChoice, Timing] = field(default_factory=dict)  # of this process
    stored: dict[ExecutorChoice, Timing] = field(default_factory=dict)  # of earlier ones
    failed: dict[ExecutorChoice, str] = field(default_factory=dict)
    train_steps: dict[ExecutorChoice, TrainStep] = field(default_factory=dict)  # of the trials
    # factors of times that were taken beside other programs, by what those did to the best so far
    scaled: dict[ExecutorChoice, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For environment.json."""
        trials = [
            {
                **choice._asdict(),
                "first_seconds": timing.first,
                "step_seconds": timing.step,
                "from": "trial" if choice in self.timings else "memory",
                **({"scaled_by": self.scaled[choice]} if choice in self.scaled else {}),
            }
            for choice, timing in self.all().items()
        ]
        trials += [{**choice._asdict(), "error": why} for choice, why in self.failed.items()]
        return {**self.choice._asdict(), "why": self.why, "trials": trials}

    def all(self) -> dict[ExecutorChoice, Timing]:
        timings = {**self.stored, **self.timings}
        return {choice: timings[choice] for choice in timings if choice not in self.failed}

    def eager_step(self) -> float:
        """Seconds a step of the fastest executor that needs no compiler."""
        timings = {**self.stored, **self.timings}
        return min(timing.step for choice, timing in timings.items() if choice.executor in EAGER)

    def total(self, choice: ExecutorChoice, steps: int) -> float:
        """Return the remaining seconds of a run, without what a trial has already compiled."""
        timing = self.all()[choice]
        first = 0.0 if choice in self.train_steps else with_warm_cache(timing).first
        return first + steps * timing.step

    def best(self, steps: int) -> ExecutorChoice:
        return min(self.all(), key=lambda choice: self.total(choice, steps))


def clocks() -> tuple[float, float]:
    """Seconds by the wall clock, and of this process's processors."""
    return time.perf_counter(), time.process_time()


def seconds_since(begin: tuple[float, float], device: str) -> float:
    """Seconds of work since `begin`.

    On a CPU, what the processors needed if that is less than the clock says, as the rest was spent
    by other programs.
    """
    clock, worked = (now - then for now, then in zip(clocks(), begin, strict=True))
    return clock if device.startswith("cuda") else min(clock, worked)


def make(work: Trainable, choice: ExecutorChoice, trials: ExecutorTrials) -> None:
    """The first call and a second one; all again where it failed on what compilers share."""
    for may_retry in (True, False):
        try:
            train_step = trials.train_steps.get(choice) or work.make(choice)
            first = timed(work, train_step, 0)
            trials.timings[choice] = Timing(first, timed(work, train_step, 1))
            trials.train_steps[choice] = train_step
            return
        except Exception as error:  # of a compiler, a device, memory: another executor may do
            shared = isinstance(error, OSError) or "CompileError" in repr(error)
            if not (may_retry and shared):  # files and processes of another compilation
                _fail(trials, choice, error)
                return


def compare(
    work: Trainable, choice: ExecutorChoice, rival: ExecutorChoice, trials: ExecutorTrials
) -> None:
    """Time a new executor in turns with the best one so far, on equal terms.

    The best time of the rival may be from a moment with less load. If no turn comes near it again,
    the time of the new one is its ratio to the rival in these turns, times that best time."""
    if (
        rival in trials.stored
        and rival not in trials.train_steps
        and rival.executor not in COMPILED
    ):
        make(work, rival, trials)
        if rival in trials.timings:
            trials.timings[rival] = min(trials.timings[rival], trials.stored[rival], key=_step)
    turns = time_in_turns(work, [choice, rival], trials)
    pairs = [(turn[choice], turn[rival]) for turn in turns if len(turn) == 2]
    if not pairs or choice in trials.failed:
        return
    timing, least = trials.timings[choice], trials.timings[rival].step
    if min(seconds for _, seconds in pairs) > QUIET * least:
        relative = statistics.median(mine / other for mine, other in pairs)
        step = min(timing.step, relative * least)
        trials.scaled[choice] = step / timing.step
        trials.timings[choice] = timing._replace(step=step)


def _step(timing: Timing) -> float:
    return timing.step


def time_in_turns(
    work: Trainable, choices: list[ExecutorChoice], trials: ExecutorTrials
) -> list[dict[ExecutorChoice, float]]:
    """Time more steps, the least of which counts; returns the seconds of each turn.

    From the third step on of those near the best only. Disturbed turns are followed by more."""
    choices = [
        choice for choice in choices if choice in trials.timings and choice in trials.train_steps
    ]
    spent, disturbed, turns = 0.0, False, list[dict[ExecutorChoice, float]]()
    while len(turns) < (2 * REPEATS if disturbed else REPEATS - 1):
        best = min((trials.timings[choice].step for choice in choices), default=0.0)
        share = BUDGET * work.steps * best
        if spent > (share if disturbed else min(LONG * len(choices), share)):
            break
        far = [choice for choice in choices if trials.timings[choice].step > DROP * best]
        choices = [choice for choice in choices if not turns or disturbed or choice not in far]
        disturbed, step_index = False, len(turns) + 2
        turns.append({})
        for offset in range(len(choices)):
            choice = choices[(offset + step_index) % len(choices)]
            try:
                seconds = timed(work, trials.train_steps[choice], step_index)
            except Exception as error:  # several are alive at once: memory may not hold them
                _fail(trials, choice, error)
                return turns
            spent, timing = spent + seconds, trials.timings[choice]
            disturbed, turns[-1][choice] = disturbed or seconds > QUIET * timing.step, seconds
            trials.timings[choice] = timing._replace(step=min(timing.step, seconds))
    return turns


def _fail(trials: ExecutorTrials, choice: ExecutorChoice, error: Exception) -> None:
    first_line = (str(error).strip().splitlines() or [""])[0]
    trials.failed[choice] = f"{type(error).__name__}: {first_line}"


def timed(work: Trainable, train_step: TrainStep, step_index: int) -> float:
    begin = clocks()
    train_step.step(work.state, train_step.step_input(step_index))
    if work.device.startswith("cuda"):
        torch.cuda.synchronize(work.device)
    if step_index == 0:  # a compiler is another process, whose work is ours
        return clocks()[0] - begin[0]
    return seconds_since(begin, work.device)
