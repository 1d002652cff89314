"""The initial state of meta-training: from the seed, or another run's meta with its cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.config.build import Parts
from metalearn.config.experiment import Experiment
from metalearn.errors import ConfigError
from metalearn.evaluate.cost_block import ONCE, per_task
from metalearn.evaluate.ledger import COUNTS, FLOPS, Entry
from metalearn.inner.method import broadcast_task_state
from metalearn.logger import warn_once
from metalearn.rng import fold_in
from metalearn.run.job import Job
from metalearn.storage import checkpoint
from metalearn.storage.schema import read_result
from metalearn.tree import STATS, from_named, named_leaves
from metalearn.types import Learner, MetaState


def start_candidates(start: str, folder: Path, seed: int) -> list[Path]:
    """Return the folders in which the run that `method.start` names is searched for.

    The run beside this one comes first: in the same comparison or folder, with the same seed."""
    out = folder.parent.parent if folder.name == f"seed-{seed}" else folder.parent
    beside = [out / start / f"seed-{seed}"]
    beside += [out / start] if out == folder.parent else []
    return [
        *beside,
        Path(start),
        Path(start) / f"seed-{seed}",
        Path("runs") / start,
        Path("runs") / start / f"seed-{seed}",
    ]


def find_start_run(start: str, folder: Path, seed: int) -> Path:
    """Return the finished run that `method.start` names.

    It is a run directory, a label of the same comparison, or an experiment, trained beside this
    run or in runs/."""
    for candidate in start_candidates(start, folder, seed):
        if (candidate / "result.json").is_file():
            return candidate
    text = (
        f"no finished run for {start!r}: use a run directory, the label of another "
        f"method of this comparison, or an experiment that was trained to "
        f"{start_candidates(start, folder, seed)[0].parent} or runs/{start} (metalearn reproduce "
        "trains the start of an experiment first)"
    )
    raise ConfigError(("method.start", text))


def initial_state(experiment: Experiment, parts: Parts, folder: Path | None = None) -> MetaState:
    """Return the state before the first step, with task state for all tasks of a step.

    `folder` is that of the run, next to which `method.start` is searched for."""
    seed = experiment.run.seeds[0]
    state = parts.method.init(fold_in(seed, "init"))
    # one shape from the first step on: it compiles once
    state = broadcast_task_state(state, experiment.run.tasks_per_step)
    if not experiment.start or folder is None:
        return state
    start_run = find_start_run(experiment.start, folder, seed)
    branch = experiment.base_method.rule_branch
    own, stored = named_leaves(state.meta), checkpoint.read(tested_checkpoint(start_run))
    named = _load_leaves(own, stored, start_run, branch)
    _refuse_other_frozen_layers(parts.learner, named, stored, start_run)
    if experiment.run.meta_steps == 0 and _has(own, branch) and not _has(stored, f"meta.{branch}"):
        warn_once(f"{start_run} has no {branch}: new tasks are learned from its initial values")
    return state._replace(meta=from_named(state.meta, named))


def warm_start(job: Job) -> tuple[Job, MetaState]:
    """Return the job, with the cost of the run that it starts from, and its initial state."""
    state = initial_state(job.experiment, job.parts, job.folder)
    if not job.experiment.start:
        return job, state
    spent = _one_time_cost(read_result(find_start_run(job.experiment.start, job.folder, job.seed)))
    for phase, entry in spent.items():
        job.ledger.add(phase, **{"seconds": 0.0, **entry})
    return replace(job, started=spent), state


def _load_leaves(
    own: dict[str, Tensor], named: dict[str, Tensor], folder: Path, branch: str | None
) -> dict[str, Tensor]:
    """Return a meta's leaves from another run's checkpoint. Raises ConfigError if one is missing.

    The parameters of a network are `params.<name>` in the meta of some methods and `<name>` in that
    of others; other leaves of the other run are left out. A rule that is to be learned, or a rule's
    state, `branch` of the meta, keeps its own initial value if the other run has none."""
    has_rule = _has(named, f"meta.{branch}")
    kept_leaves = {
        name: value for name, value in own.items() if name.startswith(f"{branch}.") and not has_rule
    }
    leaves: dict[str, Tensor] = {}
    for name, value in own.items():
        names = (name, name.removeprefix("params."), f"params.{name}")
        stored = next((named[f"meta.{n}"] for n in names if f"meta.{n}" in named), None)
        if name not in kept_leaves and stored is not None and stored.shape == value.shape:
            leaves[name] = stored.to(value)
    missing = [
        name for name in own if name not in leaves and (name not in kept_leaves or not leaves)
    ]
    if missing:
        text = f"{', '.join(missing[:4])} are missing or have another shape"
        raise ConfigError(("method.start", f"{folder} was trained with another model: {text}"))
    return {**kept_leaves, **leaves}


def _refuse_other_frozen_layers(
    learner: Learner, own: dict[str, Tensor], stored: dict[str, Tensor], folder: Path
) -> None:
    """Raise ConfigError if the other run changed layers that are frozen in this one."""
    others = {
        name.removeprefix("meta.").removeprefix("params.").removeprefix(STATS): value
        for name, value in stored.items()
        if name.startswith("meta.")
    }
    if learner.module is None or not set(learner.fixed) & set(others):
        return
    learned = {name.removeprefix("params.").removeprefix(STATS) for name in own}
    values = learner.module(learner.init(fold_in(0, "start"))).state_dict()
    changed = [
        name
        for name, value in values.items()
        if name in others and name not in learned and not torch.equal(others[name].to(value), value)
    ]
    if changed:
        text = f"{folder} changed {changed[0]}, which this model freezes at other values"
        raise ConfigError(("method.start", f"{text}: train and start the same layers"))


def _has(named: dict[str, Tensor], branch: str | None) -> bool:
    """Return whether leaves by name have some of a branch."""
    return any(name.startswith(f"{branch}.") for name in named)


def tested_checkpoint(run_folder: Path) -> Path:
    """Return the checkpoint whose meta a finished run was tested with."""
    step = read_result(run_folder).get("checkpoint_step")
    folder = run_folder / "checkpoints"
    steps = checkpoint.steps_in(folder)
    if step is None or step not in steps:
        text = "has no tested checkpoint: it learned nothing across tasks, or"
        raise ConfigError((str(run_folder), f"{text} its checkpoints were removed"))
    return checkpoint.path_of(folder, int(step))


def _one_time_cost(result: dict[str, Any]) -> dict[str, Entry]:
    """Return the cost of the other run before any new task; NaN for what it did not measure.

    The cost of weights that were pretrained elsewhere is left out: each run adds it by itself."""
    unknown = math.nan
    names = ("seconds", "seconds_waiting", *FLOPS, *COUNTS, "energy_joules")
    entries = {phase: result["cost"].get(phase) or {} for phase in ONCE}
    spent = {phase: entry | (entry.get("own") or {}) for phase, entry in entries.items()}
    return {
        phase: {key: unknown if entry[key] is None else entry[key] for key in names if key in entry}
        for phase, entry in spent.items()
        if entry and not per_task(entry)
    }
