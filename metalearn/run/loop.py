"""The only training loop: sample, step, log, validate, checkpoint; every line of it can be
resumed.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.config.build import Parts, draw_of
from metalearn.config.experiment import Experiment
from metalearn.distributed.shared_work import Asked, curve
from metalearn.distributed.team import ALONE, STOPS, Team
from metalearn.distributed.world import PASSED_ON
from metalearn.errors import ConfigError, Diverged, RankLost, Stopped
from metalearn.evaluate.curves import mean_ci95
from metalearn.evaluate.ledger import FLOPS, CostLedger, Entry
from metalearn.executors.executor import Advance
from metalearn.executors.nonfinite import Diary, NotFinite, all_finite, summary
from metalearn.logger import log
from metalearn.rng import fold_in
from metalearn.run.plan import Decision
from metalearn.run.progress import Progress
from metalearn.storage import checkpoint
from metalearn.storage.files import append_lines, cut_lines, read_lines
from metalearn.storage.schema import Line, Timing, check_lines
from metalearn.tracking.tracker import Tracker
from metalearn.tree import leaves
from metalearn.types import MetaState, Metrics

_MET: list[int] = []  # signals that this process has had


@dataclass
class Job:
    """One meta-training in its run directory."""

    experiment: Experiment
    seed: int
    folder: Path
    parts: Parts
    ledger: CostLedger
    team: Team = ALONE  # the processes at work on it
    signalled: bool = False
    counted: int = 0  # meta-steps that the ledger knows of
    decision: Decision | None = None  # of a run that begins in this process
    begun: float = field(default_factory=time.perf_counter)
    imports: float = 0.0  # seconds of this process before `begun`
    carried: float = 0.0  # seconds that are on the bill and were not spent by this process
    of_a_step: Entry | None = None  # FLOPs of one meta-step
    started: dict[str, Entry] = field(
        default_factory=dict
    )  # what the run that it started from had spent, by phase
    track: Tracker | None = None  # of the sinks; None: nobody is told (a trial of tuning)
    judge: Callable[[Path], None] | None = (
        None  # of a sweep: raises after a look that ends the trial early
    )

    @property
    def gradients(self) -> int:
        """Gradient evaluations on one task in one meta-step."""
        method = self.experiment.learns
        return int(getattr(method, "gradients_per_task", getattr(method, "inner_steps", 0) + 1))

    @property
    def wall(self) -> float:
        """Seconds that the run took by the wall clock, with those of the run that it started
        from.
        """
        return self.carried + self.imports + time.perf_counter() - self.begun

    @property
    def stopping(self) -> bool:
        """Whether this process, or another one of the run, was told to stop."""
        return self.signalled or self.team.stop

    @property
    def phase(self) -> str:
        return "pretrain" if self.parts.method.traits.consumes == "examples" else "meta_train"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"


def train(job: Job, start: MetaState, advance: Advance) -> MetaState:
    """Train from the newest checkpoint, or from `start`, to the last step; returns the last
    state.
    """
    done, state = _resume(job, start)
    job.ledger.add(
        job.phase, 0.0, **dict.fromkeys(FLOPS, 0)
    )  # measured, even where no step is left to make
    total = job.experiment.run.meta_steps
    buffer: list[tuple[int, Metrics]] = []
    diary = Diary(job.folder / "nan.jsonl", job.seed, draw_of(job.experiment, job.parts))
    diary.open(done)
    stop_early, first = _patience_is_over(job, done), done
    progress = Progress(f"{job.experiment.label} seed {job.seed}", total, done)
    # The first step of a process compiles, or fills caches: set-up. Its FLOPs are the phase's all
    # the same.
    with signals(lambda: _on_signal(job)), progress, job.ledger.span(job.phase):
        while done < total and not stop_early:
            with (
                job.ledger.span("setup") if done == first else nullcontext(),
                _kept_on_loss(job, done, state),
            ):
                state, metrics = advance(state, diary.number(done))
            done += 1
            buffer.append((done, metrics))
            try:
                stop_early = _kept(job, done, state, buffer, progress, diary)
            except NotFinite as found:
                buffer.clear()
                done, state = _gone_back(job, found, done, start, diary)
            if job.stopping:
                raise Stopped(
                    f"stopped by a signal at step {done}; go on with: metalearn resume {job.folder}"
                )
    if total == 0:
        save(job, 0, state)  # nothing to learn: the start is what the run is about
    return state


def _kept(
    job: Job,
    done: int,
    state: MetaState,
    buffer: list[tuple[int, Metrics]],
    progress: Progress,
    diary: Diary,
) -> bool:
    """Log, look at tasks and save, where they are due; says whether patience is over."""
    run, over = job.experiment.run, False
    if _due(done, run.meta_steps, run.log_every):
        _log(job, buffer, progress, diary)
    validating = _validating(job, done)
    if validating or _due(done, run.meta_steps, run.checkpoint_every) or job.stopping:
        _log(job, buffer, progress, diary)
        if not all_finite(state.meta):
            raise NotFinite(done, ["the parameters"])
        _spend(job, done, state)
        if validating:
            look(job, done, state)
            over = _patience_is_over(job, done)
        save(job, done, state)
        if validating and job.judge is not None:
            job.judge(job.metrics)
    return over


def _gone_back(
    job: Job, found: NotFinite, done: int, start: MetaState, diary: Diary
) -> tuple[int, MetaState]:
    """(step, state) to go on from after numbers that are not finite; Diverged if that is not asked
    for, or in vain.
    """
    if job.experiment.run.on_nan == "rollback":
        saved = checkpoint.newest(job.checkpoints, start)
        since, state = saved if saved else (0, start)
        if diary.go_back(since, found.step):
            _spend(job, done, start)  # the steps that come to nothing were made all the same
            job.counted = since
            cut_lines(job.metrics, since)
            log.info(
                f"{job.experiment.label} seed {job.seed}: {found}; back to step {since}, and "
                f"on with other tasks"
            )
            return since, state
    else:
        diary.write("raise", found.step)
    raise Diverged(
        f"{found}: try a smaller method.inner_lr or method.outer.lr; the checkpoints before it "
        f"are in "
        f"{job.checkpoints}, the seeds of its tasks in {diary.path}"
    ) from found


@contextmanager
def signals(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` on SIGTERM and SIGUSR1 inside the block; only a process's main thread can.

    PASSED_ON is the launcher's word for a signal that this process may have had as well: both
    together are one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, _: Any) -> None:
        before = _times_told()
        _MET.append(number)
        if _times_told() > before:
            handler()

    previous = {number: signal.signal(number, heard) for number in (*STOPS, PASSED_ON)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _times_told() -> int:
    passed_on = _MET.count(PASSED_ON)
    return max(passed_on, len(_MET) - passed_on)


def _on_signal(job: Job) -> None:
    if job.signalled:
        raise SystemExit(75)
    job.signalled = True
    log.info("signal: finishing this step and saving; a second one ends at once")


def stopped_outside(job: Job) -> None:
    """What a signal does where no step is under way: all that there is to save is saved."""
    raise Stopped(f"stopped by a signal; go on with: metalearn resume {job.folder}")


@contextmanager
def _kept_on_loss(job: Job, done: int, state: MetaState) -> Iterator[None]:
    """Where another process dies in a step, what was learned before the step is saved, unless its
    lanes died too.
    """
    try:
        yield
    except RankLost as error:
        if state.lanes is None:
            save(job, done, state)
        raise RankLost(f"{error}; go on with: metalearn resume {job.folder}") from error


def _due(done: int, total: int, every: int) -> bool:
    return done % every == 0 or done == total


def _validating(job: Job, done: int) -> bool:
    every = job.experiment.run.validate.every
    return every is not None and _due(done, job.experiment.run.meta_steps, every)


def _log(job: Job, buffer: list[tuple[int, Metrics]], progress: Progress, diary: Diary) -> None:
    """Write the mean of the metrics since the last line; the only place that reads them from the
    device.
    """
    if not buffer:
        return
    means, skipped = summary(buffer)
    step = buffer[-1][0]
    buffer.clear()
    record(job, [{"kind": "train", "step": step, **means}])
    for left_out in skipped:
        diary.write("skip", left_out)
    progress.at(step, ", ".join(f"{name} {value:.4f}" for name, value in means.items()))


def record(job: Job, rows: list[dict[str, Any]]) -> None:
    """To metrics.jsonl, then to the sinks, whose time is set-up."""
    append_lines(job.metrics, rows)
    if job.track is not None:
        with job.ledger.span("setup"):
            job.track.rows(rows)


def _spend(job: Job, done: int, state: MetaState) -> None:
    """Write the work since the last call to the ledger, whose clock is running; FLOPs are those of
    one step, times.
    """
    run, spec, fresh = job.experiment.run, job.parts.train.spec, done - job.counted
    job.counted = done
    if job.of_a_step is None:
        with job.ledger.span("setup"):
            assert job.parts.method.step is not None
            data = draw_of(job.experiment, job.parts)(fold_in(job.seed, "train", done))
            job.of_a_step = job.ledger.flops_of(
                job.phase, job.parts.method.step, job.team.whole(state), data
            )
    flops = {name: value * fresh for name, value in job.of_a_step.items()}
    if job.phase == "pretrain":
        seen = fresh * run.examples_per_step
        job.ledger.add(job.phase, 0.0, gradient_steps=fresh, examples=seen, labels=seen, **flops)
        return
    tasks = fresh * run.tasks_per_step
    seen = tasks * spec.ways * (spec.shots + spec.queries)
    counts: Entry = {
        "gradient_steps": tasks * job.gradients,
        "examples": seen,
        "labels": seen,
        "tasks": tasks,
    }
    job.ledger.add(job.phase, 0.0, **counts, **flops)


def look(job: Job, done: int, state: MetaState) -> None:
    """The same look at validation tasks and at training tasks; written to metrics.jsonl."""
    with job.ledger.span("tune"):
        record(job, _look(job, done, state))


def _look(job: Job, done: int, state: MetaState) -> list[dict[str, Any]]:
    evaluate, episodes = job.experiment.evaluate, job.experiment.run.validate.episodes
    rows = []
    for split, part in (("train", "train_tasks"), ("valid", "valid")):
        asked = Asked(part, episodes, job.seed)
        found = curve(
            job.team, job.experiment, job.parts, [state.meta], asked, job.ledger.under("tune")
        )
        at = headline_index(evaluate.steps, evaluate.headline, found.mean, found.metric)
        row = {
            "kind": "valid",
            "step": done,
            "split": split,
            "at": evaluate.steps[at],
            "loss": float(found.loss.mean(0)[at]),
        }
        row["loss_ci95"] = float(mean_ci95(found.loss[:, at]))
        if found.metric == "accuracy":
            row |= {"accuracy": float(found.mean[at]), "accuracy_ci95": float(found.ci95[at])}
        rows.append(row)
    return rows


def headline_index(steps: tuple[int, ...], headline: int | str, mean: Tensor, metric: str) -> int:
    """The place of the headline step in `steps`; `tuned`: of the best mean (accuracy high, loss
    low; NaN is worst).
    """
    if isinstance(headline, int):
        return steps.index(headline)
    if metric == "accuracy":
        return int(mean.nan_to_num(nan=-math.inf).argmax())
    return int(mean.nan_to_num(nan=math.inf, posinf=math.inf).argmin())


def ranking(job: Job) -> list[int]:
    """Validated steps from the best to the worst (earlier first on a tie), as metrics.jsonl has
    them.
    """
    rows = [
        row
        for row in read_lines(job.metrics)
        if row.get("kind") == "valid" and row.get("split") == "valid"
    ]
    high = "accuracy" if job.parts.valid.spec.classification else None

    def badness(row: dict[str, Any]) -> float:
        value = row.get(high) if high else row.get("loss")
        if value is None:
            return math.inf
        return -float(value) if high else float(value)

    return [int(row["step"]) for row in sorted(rows, key=lambda row: (badness(row), row["step"]))]


def _patience_is_over(job: Job, done: int) -> bool:
    patience = job.experiment.run.validate.patience
    order = ranking(job) if patience is not None else []
    return (
        patience is not None
        and bool(order)
        and len([step for step in order if order[0] < step <= done]) >= patience
    )


def save(job: Job, done: int, state: MetaState) -> None:
    """Timing first, then the checkpoint: a checkpoint always finds what it cost."""
    with job.ledger.span("setup"):
        state = job.team.whole(state)
        spent = {"step": done, "wall": job.wall, "spent": job.ledger.totals()}
        append_lines(job.folder / "timing.jsonl", [spent])
        checkpoint.save(checkpoint.path_of(job.checkpoints, done), state)
        best = ranking(job)[: job.experiment.run.validate.keep]
        whole = [
            step for step in checkpoint.steps_in(job.checkpoints) if step <= done
        ]  # later ones were damaged
        newest = whole[-job.experiment.run.keep_last :]
        checkpoint.keep_only(job.checkpoints, {done, *best, *newest})


def _same_lanes(job: Job, state: MetaState) -> None:
    """Refuse a state whose lanes, one a task, are others than this run's."""
    lanes, tasks = leaves(state.lanes), job.experiment.run.tasks_per_step
    held = int(lanes[0].shape[0]) if lanes else tasks
    if held not in (1, tasks):  # one: before the first step
        text = (
            f"{tasks}, but the checkpoint holds what {held} lanes of tasks carry along: set "
            f"it back to {held}"
        )
        raise ConfigError(("run.tasks_per_step", text))


def _resume(job: Job, start: MetaState) -> tuple[int, MetaState]:
    check_lines(Line, job.metrics)
    check_lines(Timing, job.folder / "timing.jsonl")
    found = checkpoint.newest(job.checkpoints, start)
    done, state = found if found else (0, start)
    _same_lanes(job, state)
    cut_lines(job.metrics, done)
    cut_lines(job.folder / "timing.jsonl", done)  # a torn line would hide what is appended after it
    spent = [
        row
        for row in read_lines(job.folder / "timing.jsonl")
        if row.get("step") == done and "spent" in row
    ]
    job.counted = done
    if found:
        log.info(f"{job.experiment.label} seed {job.seed}: going on from step {done}")
        if spent:
            this_process = job.ledger.seconds("setup")
            job.ledger.restore(spent[-1]["spent"])
            job.ledger.add("setup", this_process)
            job.carried = spent[-1].get("wall", 0.0)
    return done, state
