"""The checkpoints of a run: saved, resumed from, and chosen for the test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.config.experiment import Experiment
from metalearn.distributed.ranks import ALONE, Ranks, on_cpu
from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.run.job import Job, wall_seconds
from metalearn.run.nonfinite_log import cut_log
from metalearn.storage import checkpoint
from metalearn.storage.files import append_lines, cut_lines, read_lines
from metalearn.storage.schema import Line, Timing, check_lines
from metalearn.tree import from_named, leaves, named_leaves
from metalearn.types import MetaState


class Validation(NamedTuple):
    """The score of a checkpoint on validation tasks."""

    step: int
    score: float  # higher is better; -inf for what is not finite


def validation_of(row: dict[str, Any]) -> Validation:
    """Return the score in a line of metrics.jsonl: accuracy, or minus the loss without one."""
    value = row.get("accuracy") if "accuracy" in row else row.get("loss")
    if value is None or not math.isfinite(value):
        return Validation(int(row["step"]), -math.inf)
    return Validation(int(row["step"]), float(value) if "accuracy" in row else -float(value))


def validations_in(metrics: Path) -> list[Validation]:
    """Return the scores in metrics.jsonl."""
    rows = (row for row in read_lines(metrics) if row.get("kind") == "valid")
    return [validation_of(row) for row in rows if row.get("split") == "valid"]


def ranking(validations: Iterable[Validation]) -> list[int]:
    """Return the validated steps from best to worst, earlier ones first on a tie."""
    best_first = sorted(validations, key=lambda valid: (-valid.score, valid.step))
    return [valid.step for valid in best_first]


class Resumed(NamedTuple):
    """What a training continues from."""

    step: int
    state: MetaState  # with the task state of this rank's tasks
    validations: tuple[Validation, ...]


def resume(job: Job, start: MetaState) -> Resumed:
    """Load the newest valid checkpoint, or return `start`; cut later lines from the run's files."""
    step, named, validations, spent = job.ranks.on_rank0(lambda: _read(job, start))
    state = start if named is None else _restore(named, start)
    tasks = job.experiment.run.tasks_per_step
    _check_lanes(state, tasks)
    if named is not None:
        log.info(f"{job.title}: resuming from step {step}")
    if spent is not None:
        this_process = {phase: job.ledger.seconds(phase) for phase in ("setup", "compile")}
        job.ledger.restore(spent)
        for phase, seconds in this_process.items():
            job.ledger.add(phase, seconds)
    return Resumed(step, job.ranks.own_state(state, tasks), tuple(validations))


def _read(
    job: Job, start: MetaState
) -> tuple[int, dict[str, Tensor] | None, list[Validation], dict[str, Any] | None]:
    """Return (step, checkpoint, validations up to it, totals of the ledger)."""
    timing = job.folder / "timing.jsonl"
    check_lines(Line, job.metrics)
    check_lines(Timing, timing)
    newest = checkpoint.newest(job.checkpoints, start)
    step, state = newest or (0, start)
    _check_lanes(state, job.experiment.run.tasks_per_step)
    cut_lines(job.metrics, step)
    cut_lines(timing, step)  # a torn line would hide what is appended after it
    cut_log(job, step)
    rows = [row for row in read_lines(timing) if row.get("step") == step and "spent" in row]
    named = on_cpu(named_leaves(state)) if newest else None
    return step, named, validations_in(job.metrics), rows[-1]["spent"] if newest and rows else None


def _restore(named: dict[str, Tensor], like: MetaState) -> MetaState:
    """Return the state of a checkpoint on the devices of `like`."""
    devices = {name: value.device for name, value in named_leaves(like).items()}
    return from_named(like, {name: named[name].to(devices[name]) for name in devices})  # type: ignore[no-any-return]


def _check_lanes(state: MetaState, tasks: int) -> None:
    """Raise ConfigError if the task state belongs to another number of tasks than the run's."""
    lanes = leaves(state.lanes)
    stored_tasks = int(lanes[0].shape[0]) if lanes else tasks
    if stored_tasks not in (1, tasks):  # 1: before the first step
        text = f"is {tasks}, but the checkpoint contains the state of {stored_tasks} tasks"
        raise ConfigError(("run.tasks_per_step", f"{text}: set it to {stored_tasks}"))


def save(job: Job, done: int, state: MetaState, validations: Sequence[Validation]) -> None:
    """Save a checkpoint with the task state of all ranks; remove those no longer needed."""
    with job.ledger.span("setup"):
        whole = job.ranks.whole_state(state)
        job.ranks.on_rank0(lambda: write_checkpoint(job, done, whole, validations))


def write_checkpoint(
    job: Job, done: int, state: MetaState, validations: Sequence[Validation]
) -> None:
    """Write timing first, then the checkpoint, so that the cost of a checkpoint is always known."""
    spent = {"step": done, "wall": wall_seconds(job.ledger), "spent": job.ledger.totals()}
    append_lines(job.folder / "timing.jsonl", [spent])
    checkpoint.save(checkpoint.path_of(job.checkpoints, done), state)
    best = ranking(validations)[: job.experiment.run.validate.keep]
    along_steps = steps_along(job.experiment)
    # later checkpoints were damaged
    saved = [step for step in checkpoint.steps_in(job.checkpoints) if step <= done]
    latest = saved[-job.experiment.run.keep_last :]
    checkpoint.keep_only(job.checkpoints, {done, *best, *latest, *along_steps})


def steps_along(experiment: Experiment) -> list[int]:
    """Return the steps of `evaluate.along`, whose checkpoints are kept, without the last step."""
    total = experiment.run.meta_steps
    steps = {max(1, round(fraction * total)) for fraction in experiment.evaluate.along}
    return sorted(step for step in steps if step < total)


def stored_state(folder: Path, step: int, like: MetaState, ranks: Ranks = ALONE) -> MetaState:
    """Return the state of a checkpoint of a run. Raises ConfigError if it is damaged."""
    path = checkpoint.path_of(folder / "checkpoints", step)
    return _restore(ranks.on_rank0(lambda: on_cpu(named_leaves(checkpoint.load(path, like)))), like)


def select_checkpoint(
    experiment: Experiment, folder: Path, last: MetaState, ranks: Ranks = ALONE
) -> tuple[list[MetaState], int]:
    """Return (states, step of the first) that `evaluate.checkpoint` selects.

    The last state, the best validated one, or the kept best ones. The best without a validation is
    the last."""
    choice = experiment.evaluate.checkpoint
    count = experiment.run.validate.keep if choice == "ensemble" else 1
    best = (
        [] if choice == "last" else ranks.on_rank0(lambda: _best_checkpoints(folder, last, count))
    )
    if not best:
        return [last], int(last.step)
    return [_restore(named, last) for _, named in best], best[0][0]


def _best_checkpoints(
    folder: Path, like: MetaState, count: int
) -> list[tuple[int, dict[str, Tensor]]]:
    best: list[tuple[int, dict[str, Tensor]]] = []
    for step in ranking(validations_in(folder / "metrics.jsonl")):
        path = checkpoint.path_of(folder / "checkpoints", step)
        if len(best) == count or not path.exists():
            continue
        try:
            best.append((step, on_cpu(named_leaves(checkpoint.load(path, like)))))
        except ConfigError as error:
            log.warning(f"{error}; using the next best checkpoint")
    return best
