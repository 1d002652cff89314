"""`auto`: the executor that is expected to finish a run first.

    total(executor) = seconds of the first call (compilation included) + steps * seconds of a step

Eager executors are timed in turns, within a fraction of the run, so that other load of the machine
affects them equally. A compiled one cannot be timed before it is compiled: that is done if the
expected saving is larger than its cost, or the cost small compared with the run. It is then timed
in turns with the best so far, whose slowdown since its first timing estimates the current load of
the machine. Trials start from the state before step 0 and their results are discarded. Timings are
stored (timings.py), and if they are known, no trials are run. The loop may choose again
(`choose_again`) when steps take longer than predicted."""

from __future__ import annotations

import time
from dataclasses import dataclass

from metalearn.executors.executor import CHUNK, COMPILED, why_not
from metalearn.executors.step import (
    BatchSampler,
    TrainStep,
    build_train_step,
    with_run_options,
)
from metalearn.executors.timings import ExecutorChoice, Timing
from metalearn.executors.trace import COMPILER_CACHE as COMPILER_CACHE
from metalearn.executors.trials import BUDGET, EAGER, ExecutorTrials, compare, make, time_in_turns
from metalearn.machine import cores
from metalearn.tree import leaves
from metalearn.types import Key, MetaState, Method

SHORT = 100  # steps below which a run is over before a trial could pay
COMPILE_SHARE = 0.03  # share of a run that a compilation without an expected saving may take
SMALL = 50_000  # parameters below which Python and launch overhead is all there is
SLOWER = 2.0  # a step of so many times its trial's seconds repeats the choice
SIZES = (16, CHUNK)  # tasks in a chunk that are tried between all of them and one


@dataclass(frozen=True)
class Work:
    """The steps of a run on a device."""

    method: Method
    sample: BatchSampler
    key: Key
    state: MetaState
    tasks: int
    device: str
    steps: int
    most: int  # tasks at once that memory holds
    workers: int = 1
    compiling: bool = True  # whether compiled executors may be tried
    precision: str = "float32"
    on_nan: str = "raise"

    def make(self, choice: ExecutorChoice) -> TrainStep:
        """The step under an executor in the run's precision, which a captured graph keeps."""
        train_step = build_train_step(
            self.method,
            self.sample,
            self.key,
            tasks=self.tasks,
            device=self.device,
            executor=choice.executor,
            chunk=choice.chunk,
            workers=self.workers,
        )
        return with_run_options(train_step, self.precision, self.on_nan)

    @property
    def small(self) -> bool:
        return is_small(self.state)

    @property
    def splits(self) -> bool:
        """Whether a step can be computed in chunks."""
        return self.method.task_grad is not None

    @property
    def largest(self) -> int:
        """Tasks in a chunk that memory holds, with a chunk in every worker."""
        return max(1, self.most // self.workers)


def is_small(state: MetaState) -> bool:
    sizes = [leaf.numel() for leaf in leaves(state.meta)]
    return sum(sizes) < SMALL and not any(leaf.dim() == 4 for leaf in leaves(state.meta))


def default_threads(state: MetaState) -> int:
    """CPU threads where the config leaves them open: one for small models, else every core."""
    return 1 if is_small(state) else cores()


def configured_choice(
    executor: str, chunk: int | None, tasks: int, most: int, workers: int = 1
) -> ExecutorChoice:
    """The choice that a config names; where it leaves the chunk open, the one that fits memory."""
    largest = max(1, most // workers)
    if executor == "chunk":
        return ExecutorChoice(executor, chunk or min(CHUNK, largest))
    if executor == "compiled":
        return ExecutorChoice(executor, chunk if chunk or most >= tasks else largest)
    return ExecutorChoice(executor, chunk)


def choose(
    work: Work,
    stored: dict[ExecutorChoice, Timing],
    chunk: int | None = None,
    train_steps: dict[ExecutorChoice, TrainStep] | None = None,
) -> ExecutorTrials:
    """The executor that is expected to finish `work` first; `chunk` where the config fixes it.

    `train_steps` have been built before, and are timed with the others.
    """
    eager = _eager(work, chunk)
    if work.steps < SHORT:
        return ExecutorTrials(eager[0], f"{work.steps} steps: the run is too short for trials")
    compiled = _compiled(work, chunk)
    possible = {*eager, *compiled}
    trials = ExecutorTrials(
        eager[0],
        stored={c: stored[c] for c in stored if c in possible},
        train_steps=train_steps or {},
    )
    if not any(choice in trials.stored for choice in eager):
        _try_eager(work, [*dict.fromkeys([*trials.train_steps, *eager])], trials)
    if not trials.all():
        return trials  # the first step will raise the error
    for choice in compiled:
        if choice not in trials.all() and _worth_compiling(work, choice, trials):
            rival = trials.best(work.steps)
            make(work, choice, trials)
            compare(work, choice, rival, trials)
    trials.choice = trials.best(work.steps)
    trials.why = _reason(work, compiled, trials)
    return trials


def choose_again(
    work: Work,
    trials: ExecutorTrials,
    running: TrainStep,
    step_seconds: float,
    chunk: int | None = None,
) -> ExecutorTrials | None:
    """Return a new choice if steps take twice as long as in the trial; None to go on.

    The loop may call it just after it has saved a checkpoint. `work` holds the saved state and the
    number of steps that are left; `trials` is what `choose`, or this function, returned; `running`
    makes the steps now; `step_seconds` is the mean of a step since the last call, measured with
    `clocks` and `seconds_since`. If the choice is a new one, write its executor and chunk to
    config.yaml and go on with `new.train_steps[new.choice]`; if not, `trials` now promises what was
    measured.
    """
    in_trial = trials.all().get(trials.choice)
    if in_trial is None or step_seconds < SLOWER * in_trial.step or work.steps < SHORT:
        return None
    new_trials = choose(work, {}, chunk, {trials.choice: running})
    if new_trials.choice == trials.choice:
        trials.timings[trials.choice] = in_trial._replace(step=step_seconds)
        return None
    times = step_seconds / in_trial.step
    new_trials.why = (
        f"{trials.choice} took {times:.1f} times as long as predicted; {new_trials.why}"
    )
    return new_trials


def _eager(work: Work, chunk: int | None) -> list[ExecutorChoice]:
    """The choices that need no compiler, the likeliest first."""
    vmap = ExecutorChoice("vmap")
    if not work.splits:
        return [vmap]
    if chunk is not None:
        return [vmap if chunk >= work.tasks else ExecutorChoice("chunk", chunk)]
    sizes = {size for size in (work.largest, *SIZES) if 1 < size <= work.largest}
    choices = [ExecutorChoice("chunk", size) for size in sorted(sizes) if size < work.tasks]
    choices = [*reversed(choices), ExecutorChoice("loop")]
    if work.most >= work.tasks:
        choices = [vmap, *choices]
    if not work.small and not work.device.startswith("cuda"):
        # Convolutions: the activations of a few tasks stay in a processor's caches.
        choices.sort(key=lambda choice: choice != ExecutorChoice("chunk", CHUNK))
    return choices


def _compiled(work: Work, chunk: int | None) -> list[ExecutorChoice]:
    """The choices that are worth a compilation on such work."""
    fits = work.most >= work.tasks and chunk is None
    long = work.method.traits.step_invariant and chunk is None
    if work.device.startswith("cuda") and fits:
        # the steps of a long loop are captured in seconds, and compiled in many minutes
        last = "compiled_steps" if long else "compiled_graph"
        choices = [ExecutorChoice("graph"), ExecutorChoice(last)]
    elif long:
        choices = [ExecutorChoice("compiled_steps")] if fits else []
    elif work.device.startswith("cuda"):
        choices = [ExecutorChoice("compiled", chunk or work.most)]
    elif not work.splits or work.small:
        choices = [ExecutorChoice("traced"), ExecutorChoice("compiled")] if fits else []
        choices = choices or [ExecutorChoice("compiled", chunk or work.largest)]
    else:
        size = min(_compiled_chunk(work), work.largest)
        chunk = chunk or divisor_near(work.tasks, size) or (None if fits else size)
        choices = [ExecutorChoice("compiled", chunk)]
    return [c for c in choices if work.compiling and not why_not(c.executor, work.device, c.chunk)]


def _compiled_chunk(work: Work) -> int:
    """Tasks in a compiled chunk: a few for one thread, a worker's share (16 at most) for several.

    The activations of few tasks stay in the caches. Several workers wait for each other between the
    operators, as Python runs one thread at a time, so fewer and larger chunks are faster there."""
    return CHUNK if work.workers == 1 else max(CHUNK, min(SIZES[0], work.tasks // work.workers))


def divisor_near(tasks: int, size: int) -> int | None:
    """The divisor of `tasks` nearest to `size`, at most twice as large; None: all tasks at once.

    One graph then serves all chunks.
    """
    near = [number for number in range((size + 1) // 2, 2 * size + 1) if tasks % number == 0]
    best = min(near, key=lambda number: abs(number - size), default=size)
    return best if best < tasks else None


def _worth_compiling(work: Work, choice: ExecutorChoice, trials: ExecutorTrials) -> bool:
    """Whether compiling is expected to pay, or costs too little beside the run to be missed."""
    eager, best = trials.eager_step(), trials.all()[trials.best(work.steps)].step
    cost, gain = _compile_prior(work, choice, eager)
    return work.steps * (best - eager / gain) > cost or cost < COMPILE_SHARE * work.steps * best


def _compile_prior(work: Work, choice: ExecutorChoice, step: float) -> tuple[float, float]:
    """(seconds that compiling may take, how many times faster than an eager `step` it may be), from
    measured runs.

    The time to trace and to compile grows with the number of operations; so does an eager step of a
    small model, which is all overhead, about 7 microseconds an operation. A machine that has never
    compiled builds its headers first. A CUDA graph saves the host's time of every launch, and
    compiling it most of the launches (1,358 become about 400 for Conv4-64): expected, as no card
    has been measured."""
    if choice.executor == "traced":
        return 0.1 + 150 * step, 2.0
    if choice.executor == "graph":
        return 3.0 + 5 * step, 5.0
    if choice.executor == "compiled_graph":
        return 60.0, 15.0
    headers = 0.0 if any((COMPILER_CACHE / "precompiled_headers").glob("*")) else 8.0
    if work.small or not work.splits:
        return headers + 8.0 + 1000 * step, 8.0
    return headers + 45.0, 2.0


def _try_eager(work: Work, choices: list[ExecutorChoice], trials: ExecutorTrials) -> None:
    began = time.perf_counter()
    for choice in choices:
        if any(done.executor in EAGER for done in trials.timings):
            best = min(timing.step for timing in trials.timings.values())
            spent = time.perf_counter() - began + 2 * best
            # small: all tasks at once are fastest, as overhead is all there is
            if work.small or spent > BUDGET * work.steps * best:
                continue
        make(work, choice, trials)
    time_in_turns(work, list(trials.timings), trials)


def _reason(work: Work, compiled: list[ExecutorChoice], trials: ExecutorTrials) -> str:
    choice, timings = trials.choice, trials.all()
    others = ", ".join(f"{c} {1000 * timings[c].step:.3g} ms" for c in timings if c != choice)
    text = "tried" if choice in trials.timings else "known from earlier runs"
    text += f": {1000 * timings[choice].step:.3g} ms per step"
    text += f" against {others}" if others else ""
    if choice.executor in COMPILED and choice in trials.timings:
        first = trials.timings[choice].first
        text += f"; compiling took {first:.0f} s of a run of {work.steps} steps"
    if choice in trials.scaled:
        text += f"; timed with other programs running, and scaled by {trials.scaled[choice]:.2f}"
    text += "".join(f"; {c} failed" for c in trials.failed)
    untried = [c for c in compiled if c not in timings and c not in trials.failed]
    if untried and choice.executor not in COMPILED:
        text += f"; {work.steps} steps are too few to amortise compiling"
    return text
