"""The only training loop: sample, step, log, validate, save."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor

from metalearn.distributed.curve import TaskSet, curve
from metalearn.errors import Diverged, RankLost
from metalearn.evaluate.curves import mean_ci95
from metalearn.evaluate.ledger import FLOPS, Entry
from metalearn.executors.cuda_graphs import captured_learning
from metalearn.executors.nonfinite import NotFinite, all_finite, summary
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
from metalearn.run.plan import TrainingSteps, replan_if_slow
from metalearn.run.progress import Progress
from metalearn.run.signals import finishing_step, stop
from metalearn.tree import tree_map
from metalearn.types import EpisodeSpec, MetaState, Metrics

WORTH = 10  # replays of several steps that are worth their capture
WAIT = 10.0  # seconds that a device gets to end its work once another process is gone
Buffer = list[tuple[int, Metrics]]  # the metrics of steps, on their device


def train(job: Job, steps: TrainingSteps, start: MetaState) -> tuple[Job, MetaState]:
    """Train from the newest checkpoint, or from `start`; return the job and the last state."""
    run, (first, state, validations) = job.experiment.run, resume(job, start)
    flops, counted, buffer = _step_flops(job, start, first), first, Buffer()
    along = steps_along(job.experiment)
    progress = Progress(job.title, run.meta_steps, first, show=job.ranks.is_first)
    done, known, ends = first, {1}, (*along, run.meta_steps)
    with _captured_looks(job), finishing_step(job.ranks), progress, _training(job):
        while done < run.meta_steps and not _patience_is_over(job, validations):
            count = 1 if done == first else _count_at_once(steps, done, ends, known)
            # The first step of a process compiles, or fills caches; so do the first of a graph.
            new = done == first or count not in known
            timed = job.ledger.span("compile") if new else nullcontext()
            with timed, _save_if_rank_lost(job, done, state, validations):
                state, found = _make_steps(steps, state, done, count)
            known.add(count)
            buffer += [(done + place, metrics) for place, metrics in enumerate(found, 1)]
            done, stopping = done + count, job.ranks.stopping()
            validating = _due(done, run.meta_steps, run.validate.every)
            saving = stopping or validating or _due(done, run.meta_steps, run.checkpoint_every)
            saving = saving or done in along
            if saving or _due(done, run.meta_steps, run.log_every):
                _log(job, buffer, progress)
                buffer = []
            if saving:
                _check_finite(state, done)
                _record_steps(job, done - counted, flops)
                counted = done
                if validating:
                    validations = (*validations, validate(job, done, state))
                save(job, done, state, validations)
                if validating and job.judge is not None:
                    job.judge(job.metrics)
                job, steps = replan_if_slow(job, steps, state)
            if stopping:
                stop(job.folder, f" at step {done}")
    if run.meta_steps == 0:
        save(job, 0, state, ())  # nothing to learn: the start is what the run is about
    return job, state


@contextmanager
def _training(job: Job) -> Iterator[None]:
    with job.ledger.span(job.phase), _raise_diverged(job):
        yield


def _captured_looks(job: Job) -> AbstractContextManager[None]:
    """A context in which validation tasks are learned by captured graphs on CUDA.

    The test of the run is not, as its seconds are the cost of a new task. A frozen network computes
    a few images at a time, which a trace would not."""
    return captured_learning("cpu" if job.parts.learner.frozen is not None else job.parts.device)


def _count_at_once(
    steps: TrainingSteps, done: int, ends: Sequence[int], known: Collection[int]
) -> int:
    """The number of steps that the next replay makes: none of `ends` lies between them.

    A size that is not among those `known` is captured first, for which many steps have to be left.
    """
    count = steps.at_once
    if count not in known and ends[-1] - done < WORTH * count:
        return 1
    inside = done % count or any(done < end < done + count for end in ends)
    return 1 if inside else count


def _make_steps(
    steps: TrainingSteps, state: MetaState, number: int, count: int
) -> tuple[MetaState, list[Metrics]]:
    """The state after steps number .. number + count - 1, and the metrics of each."""
    if count > 1:
        assert steps.several is not None
        return steps.several(state, number, count)
    step_input = steps.sample(number)  # tasks, or their number if the trace samples
    state, metrics = steps.step(state, step_input)
    return state, [metrics]


@contextmanager
def _raise_diverged(job: Job) -> Iterator[None]:
    """Diverged for numbers that are not finite, after their tasks are written to nan.jsonl."""
    try:
        yield
    except NotFinite as found:
        error = found  # for the closure below
        job.ranks.on_rank0(lambda: log_step(job, "raise", error.step))
        raise Diverged(
            f"{found}: try a smaller method.inner_lr or method.outer.lr; the checkpoints before "
            f"it are in {job.checkpoints}, the seeds of its tasks in {log_path(job)}"
        ) from found


@contextmanager
def _save_if_rank_lost(
    job: Job, done: int, state: MetaState, validations: tuple[Validation, ...]
) -> Iterator[None]:
    """Save the state before the step if another process dies in it.

    Not if that process held a part of the task state, nor if the device waits for its part of a
    sum."""
    try:
        yield
    except RankLost as error:
        ended = finishes(job.parts.device, lambda: WAIT)
        if state.lanes is None and job.ranks.is_first and ended:
            write_checkpoint(job, done, state, validations)
        raise RankLost(f"{error}; go on with: metalearn resume {job.folder}") from error


def _due(done: int, total: int, every: int | None) -> bool:
    return every is not None and (done % every == 0 or done == total)


def _check_finite(state: MetaState, done: int) -> None:
    if not all_finite(state.meta):
        raise NotFinite(done, ["the parameters"])


def _log(job: Job, buffer: Buffer, progress: Progress) -> None:
    """Write the mean of the metrics since the last line.

    Only here are they read from the device."""
    if not buffer:
        return
    means, skipped = summary(buffer)
    step = buffer[-1][0]
    job.record([{"kind": "train", "step": step, **means}])
    for left_out in skipped:
        job.ranks.on_rank0(partial(log_step, job, "skip", left_out))
    progress.at(step, ", ".join(f"{name} {value:.4f}" for name, value in means.items()))


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
    spent = {name: value * steps for name, value in flops.items()}
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
    job.ledger.add(job.phase, 0.0, **counts, **spent)


def examples_of_task(method: Any, spec: EpisodeSpec) -> tuple[int, int]:
    """(examples, labels) that training uses of one task.

    Support and query set once, or minibatches, where a method draws them from the support set."""
    size = getattr(method, "minibatches", (None, None))[0]
    if size is None:
        count = spec.ways * (spec.shots + spec.queries)
        return count, count
    drawn = size * method.inner_steps
    return drawn, min(drawn, spec.ways * spec.shots)


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
    tasks = TaskSet("train_tasks" if split == "train" else split, episodes, job.seed)
    ledger = job.ledger.under(phase)
    with features_once(job.parts, tasks, evaluate.chunk, job.ledger, job.ranks, phase):
        found = curve(job.ranks, job.experiment, job.parts, [state.meta], tasks, ledger)
    at = headline_index(evaluate.steps, evaluate.headline, found.mean, found.metric)
    loss = found.loss[:, at]  # [E]
    row: dict[str, object] = {"kind": "valid", "step": done, "split": split}
    row |= {"at": evaluate.steps[at], "loss": float(found.loss.mean(0)[at])}
    row["loss_ci95"] = float(mean_ci95(loss))
    if found.metric == "accuracy":
        row |= {"accuracy": float(found.mean[at]), "accuracy_ci95": float(found.ci95[at])}
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
