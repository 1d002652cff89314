"""The only training loop: sample, step, log, validate, save."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor

from metalearn.config.sections import Run
from metalearn.distributed.curve import TaskSet, curve
from metalearn.errors import Diverged, RankLost
from metalearn.evaluate.curves import mean_ci95
from metalearn.evaluate.ledger import FLOPS, Entry
from metalearn.executors.cuda_graphs import captured_learning
from metalearn.executors.nonfinite import NotFinite, all_finite, summary
from metalearn.executors.step import TrainStep
from metalearn.executors.trials import clocks, seconds_since
from metalearn.machine import finishes
from metalearn.rng import fold_in
from metalearn.run.checkpoints import (
    Validation,
    ranking,
    resume,
    save,
    steps_along,
    validation_of,
    write_checkpoint,
)
from metalearn.run.features import features_once
from metalearn.run.job import Job
from metalearn.run.nonfinite_log import log_path, log_step
from metalearn.run.plan import Execution, replan_if_slow
from metalearn.run.progress import Progress
from metalearn.run.signals import finishing_step, stop
from metalearn.storage.checkpoint import steps_in
from metalearn.storage.files import append_lines
from metalearn.tree import tree_map
from metalearn.types import EpisodeSpec, MetaState, Metrics

MAX_REPLAY_STEPS = 50  # steps in one captured graph
MIN_REPLAYS = 10  # replays of several steps that make up for the capture
LOST_RANK_TIMEOUT_S = 10.0  # seconds for a device to end its work once another process is gone
Buffer = list[tuple[int, Metrics]]  # (number of steps done, metrics of the last), on their device


def train(job: Job, execution: Execution, start: MetaState) -> tuple[Job, MetaState]:
    """Train from the newest checkpoint, or from `start`; return the job and the last state."""
    run, (first, state, validations) = job.experiment.run, resume(job, start)
    flops, recorded_until, buffer = _step_flops(job, start, first), first, Buffer()
    checkpoint_steps = steps_along(job.experiment)
    progress = Progress(job.title, run.meta_steps, first, show=job.ranks.is_first)
    boundaries = (first + 1, *checkpoint_steps, run.meta_steps)  # that no call of several crosses
    done, captured = first, {1}
    with _graphed_validation(job), finishing_step(job.ranks), progress, _training_phase(job):
        while done < run.meta_steps and not _patience_is_over(job, validations):
            count = _steps_per_call(run, execution, done, boundaries, captured)
            # The first step of a process, and the first call of a graph, compiles or fills caches.
            compiles = done == first or count not in captured
            timed = job.ledger.span("compile") if compiles else nullcontext()
            unsaved = (done - recorded_until, flops, buffer)
            with timed, _save_if_rank_lost(job, done, state, validations, unsaved):
                state, step_metrics = _run_steps(execution, state, done, count)
            captured.add(count)
            buffer += list(enumerate(step_metrics, done + 1))
            done, stopping = done + count, job.ranks.stopping()
            validating = _due(done, run.meta_steps, run.validate.every)
            saving = stopping or validating or _due(done, run.meta_steps, run.checkpoint_every)
            saving = saving or done in checkpoint_steps
            if saving or _due(done, run.meta_steps, run.log_every):
                buffer = _log(job, buffer, progress)
            if saving:
                _check_finite(state, done)
                _record_steps(job, done - recorded_until, flops)
                recorded_until = done
                if validating:
                    validations = (*validations, validate(job, done, state))
                save(job, done, state, validations)
                if validating and job.on_validation is not None:
                    job.on_validation(job.metrics)
                job, execution = replan_if_slow(job, execution, state)
            if stopping:
                stop(job.folder, f" at step {done}")
    if run.meta_steps == 0:
        save(job, 0, state, ())  # no training: the run is about the initial state
    return job, state


@contextmanager
def _training_phase(job: Job) -> Iterator[None]:
    with job.ledger.span(job.phase), _raise_diverged(job):
        yield


def _graphed_validation(job: Job) -> AbstractContextManager[None]:
    """Context manager in which validation tasks are learned by captured graphs on CUDA.

    The test of the run is not, as its seconds are the cost of a new task. A frozen network computes
    a few images at a time, which a trace would not."""
    return captured_learning("cpu" if job.parts.learner.frozen is not None else job.parts.device)


def _steps_per_call(
    run: Run,
    execution: Execution,
    done: int,
    boundaries: Sequence[int],
    captured: Collection[int],
) -> int:
    """The number of steps of the next call: none of `boundaries` lies between them.

    A number that is not among those `captured` is captured first, which takes many steps to pay.
    """
    count = 1 if execution.train_step.multi_step is None else _max_steps_per_call(run)
    if count not in captured and boundaries[-1] - done < MIN_REPLAYS * count:
        return 1
    crosses = done % count or any(done < step < done + count for step in boundaries)
    return 1 if crosses else count


def _max_steps_per_call(run: Run) -> int:
    """The largest number of steps, at most `MAX_REPLAY_STEPS`, that divides the intervals of log
    lines, checkpoints and validations."""
    intervals = run.log_every, run.checkpoint_every, run.validate.every
    common = math.gcd(*(interval for interval in intervals if interval))
    return max(count for count in range(1, MAX_REPLAY_STEPS + 1) if common % count == 0)


def _run_steps(
    execution: Execution, state: MetaState, step_index: int, count: int
) -> tuple[MetaState, list[Metrics]]:
    """The state after `count` steps from number `step_index` on, and the metrics of each."""
    train_step: TrainStep = execution.train_step
    if count > 1:
        assert train_step.multi_step is not None
        return train_step.multi_step(state, step_index, count)
    started_at = clocks()
    # A batch of tasks, or the step index if sampling is traced as a part of the step. Under
    # `traced` the step's Python code runs only on the first call (with these shapes).
    step_input = train_step.step_input(step_index)
    state, metrics = train_step.step(state, step_input)
    execution.times.add(seconds_since(started_at, "cpu"))
    return state, [metrics]


@contextmanager
def _raise_diverged(job: Job) -> Iterator[None]:
    """Diverged for numbers that are not finite, after their tasks are written to nan.jsonl."""
    try:
        yield
    except NotFinite as raised:
        error = raised  # for the closure below
        job.ranks.on_rank0(lambda: log_step(job, "raise", error.step))
        saved = f"the checkpoints before it are in {job.checkpoints}"
        saved = saved if steps_in(job.checkpoints) else "no checkpoint was saved before it"
        raise Diverged(
            f"{error}: try a smaller method.inner_lr or method.outer.lr; {saved}, the seeds of its "
            f"tasks in {log_path(job)}"
        ) from error


@contextmanager
def _save_if_rank_lost(
    job: Job,
    done: int,
    state: MetaState,
    validations: tuple[Validation, ...],
    unsaved: tuple[int, Entry, Buffer],
) -> Iterator[None]:
    """Save the state before the step if another process dies in it, with what is `unsaved`: steps
    that are not in the ledger yet, the FLOPs of one, and metrics.

    Not if that process held a part of the task state, nor if the device waits for its part of a
    sum."""
    try:
        yield
    except RankLost as error:
        ended = finishes(job.parts.device, lambda: LOST_RANK_TIMEOUT_S)
        if state.lanes is None and job.ranks.is_first and ended:
            steps, flops, buffer = unsaved
            if steps:
                _record_steps(job, steps, flops)
            if buffer:  # on this rank alone: the others may be gone
                line = {"kind": "train", "step": buffer[-1][0], **summary(buffer)[0]}
                append_lines(job.metrics, [line])
            write_checkpoint(job, done, state, validations)
        raise RankLost(f"{error}; continue with: metalearn resume {job.folder}") from error


def _due(done: int, total: int, every: int | None) -> bool:
    return every is not None and (done % every == 0 or done == total)


def _check_finite(state: MetaState, done: int) -> None:
    if not all_finite(state.meta):
        raise NotFinite(done, ["the parameters"])


def _log(job: Job, buffer: Buffer, progress: Progress) -> Buffer:
    """Write the mean of the metrics since the last line; return the empty buffer of the next.

    Only here are they read from the device."""
    if not buffer:
        return []
    means, skipped = summary(buffer)
    step = buffer[-1][0]
    job.record([{"kind": "train", "step": step, **means}])
    for skipped_step in skipped:
        job.ranks.on_rank0(partial(log_step, job, "skip", skipped_step))
    progress.at(step, ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
    return []


def _step_flops(job: Job, state: MetaState, first: int) -> Entry:
    """FLOPs of one step of all ranks together, counted from the shapes of one task's data."""
    # The phase is measured, even where no step is left to make.
    job.ledger.add(job.phase, 0.0, **dict.fromkeys(FLOPS, 0))
    run, source, key = job.experiment.run, job.parts.train, fold_in(job.seed, "train", first)
    assert job.parts.method.step is not None
    if first >= run.meta_steps:
        return {}
    pretraining = job.phase == "pretrain"
    one: Any = source.examples(key, 1) if pretraining else source.sample(key, 1)
    count = run.examples_per_step if pretraining else run.tasks_per_step
    data = tree_map(lambda x: None if x is None else x.expand(count, *x.shape[1:]), one)
    return job.ledger.flops_of(job.phase, job.parts.method.step, state, data)


def _record_steps(job: Job, steps: int, flops: Entry) -> None:
    """Write steps to the ledger, whose clock is running."""
    run, spec = job.experiment.run, job.parts.train.spec
    step_flops = {name: value * steps for name, value in flops.items()}
    if job.phase == "pretrain":
        examples = steps * run.examples_per_step
        counts: Entry = {"gradient_steps": steps, "examples": examples, "labels": examples}
    else:
        tasks = steps * run.tasks_per_step
        examples, labels = examples_of_task(job.experiment.base_method, spec)
        counts = {
            "gradient_steps": tasks * job.experiment.base_method.gradients_per_task,
            "examples": tasks * examples,
        }
        counts |= {"labels": tasks * labels, "tasks": tasks}
    job.ledger.add(job.phase, 0.0, **counts, **step_flops)


def examples_of_task(method: Any, spec: EpisodeSpec) -> tuple[int, int]:
    """(examples, labels) that training uses of one task.

    Support and query set once; or what each inner step takes of the support set, in minibatches or
    of a method that reads no queries."""
    support, size = spec.ways * spec.shots, getattr(method, "minibatches", (None, None))[0]
    if size is None and getattr(method, "reads_queries", True):
        count = support + spec.ways * spec.queries
        return count, count
    examples = (size or support) * method.inner_steps
    return examples, min(examples, support)


def validate(job: Job, done: int, state: MetaState) -> Validation:
    """Score validation tasks, and write the score to metrics.jsonl.

    The score on the same number of training tasks is written as well; as it is not used for
    selection, its cost is set-up and not tuning. Tuning trials skip it."""
    rows, splits = [], (("train", "setup"), ("valid", "tune"))
    for split, phase in splits[1:] if job.trial else splits:
        with job.ledger.span(phase):
            rows.append(_score_split(job, done, state, split, phase))
    with job.ledger.span("setup"):
        job.record(rows)
    return validation_of(rows[-1])


def _score_split(
    job: Job, done: int, state: MetaState, split: str, phase: str
) -> dict[str, object]:
    evaluate, episodes = job.experiment.evaluate, job.experiment.run.validate.episodes
    tasks = TaskSet("train_in_test_form" if split == "train" else split, episodes, job.seed)
    ledger = job.ledger.under(phase)
    with features_once(job.parts, tasks, evaluate.chunk, job.ledger, job.ranks, phase):
        scores = curve(job.ranks, job.experiment, job.parts, [state.meta], tasks, ledger)
    headline = headline_index(evaluate.steps, evaluate.headline, scores.mean, scores.metric)
    loss = scores.loss[:, headline]  # [E]
    row: dict[str, object] = {"kind": "valid", "step": done, "split": split}
    row |= {"at": evaluate.steps[headline], "loss": float(scores.loss.mean(0)[headline])}
    row["loss_ci95"] = float(mean_ci95(loss))
    if scores.metric == "accuracy":
        row |= {
            "accuracy": float(scores.mean[headline]),
            "accuracy_ci95": float(scores.ci95[headline]),
        }
    return row


def headline_index(steps: tuple[int, ...], headline: int | str, mean: Tensor, metric: str) -> int:
    """The index of the headline step in `steps`; `tuned`: of the best mean.

    The highest accuracy or lowest loss; NaN is worst."""
    if isinstance(headline, int):
        return steps.index(headline)
    if metric == "accuracy":
        return int(mean.nan_to_num(nan=-math.inf).argmax())
    return int(mean.nan_to_num(nan=math.inf, posinf=math.inf).argmin())


def _patience_is_over(job: Job, validations: tuple[Validation, ...]) -> bool:
    """Whether so many validations in a row brought no new best."""
    patience, order = job.experiment.run.validate.patience, ranking(validations)
    if patience is None or not order:
        return False
    return sum(step > order[0] for step in order) >= patience
