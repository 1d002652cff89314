"""Checks for options that are incompatible with the device or with other options."""

from __future__ import annotations

from typing import Any

from metalearn.component import TaskComponent
from metalearn.config.experiment import Experiment
from metalearn.config.sections import Run
from metalearn.executors.executor import COMPILED, why_not


def misfits(run: Run, device: str) -> list[tuple[str, str]]:
    """Return the options of `run` that the device does not support: (place, sentence)."""
    problems = []
    if (why := why_not(run.executor, device, run.chunk)) is not None:
        problems.append(("run.executor", why))
    if run.on_nan == "rollback":
        text = "rollback was removed: use skip, which leaves such a step out, or raise"
        problems.append(("run.on_nan", text))
    if run.checkpoint_inner and run.executor in (*COMPILED, "traced"):
        text = f"saves no memory with executor {run.executor}, which merges repeated computations"
        problems.append(("run.checkpoint_inner", f"{text}: use chunk, vmap or loop"))
    if run.precision == "tf32" and not device.startswith("cuda"):
        text = f"tf32 needs a CUDA device (got {device}): use float32"
        problems.append(("run.precision", text))
    if run.precision != "float32" and run.dtype != "float32":
        text = f"{run.precision} needs run.dtype float32 (got {run.dtype}): omit one of the two"
        problems.append(("run.precision", text))
    if run.engine != "native" and (run.precision != "float32" or run.checkpoint_inner):
        text = f"{run.engine} supports neither run.precision nor run.checkpoint_inner: omit them"
        problems.append(("run.engine", text))
    return problems


def choices_by_seen_classes(experiment: Experiment) -> list[tuple[str, str]]:
    """Return options that select on validation tasks if training also uses their classes."""
    if not experiment.task.trains_on_validation:
        return []
    why = "training uses the validation classes, so they cannot be used for selection"
    problems = []
    if experiment.evaluate.checkpoint != "last":
        text = f"is {experiment.evaluate.checkpoint}, but {why}: use last"
        problems.append(("evaluate.checkpoint", text))
    if experiment.evaluate.split == "valid" and _same_source(experiment):
        problems.append(("evaluate.split", "is valid, but training uses its classes: use test"))
    if experiment.run.validate.patience is not None:
        text = f"stops training by validation tasks, but {why}: omit it"
        problems.append(("run.validate.patience", text))
    if experiment.evaluate.headline_step == "tuned":
        problems.append(("evaluate.headline_step", f"is tuned, but {why}: use a number of steps"))
    if experiment.tune:
        problems.append(("method.tune", f"tunes on validation tasks, but {why}: omit it"))
    return problems


def contradictions(experiment: Experiment) -> list[tuple[str, str]]:
    """Return fields of the test tasks that contradict the training or their number: (place,
    sentence)."""
    task, evaluate = experiment.test_task, experiment.evaluate
    problems = [
        (f"evaluate.task.{name}", text) for name, text in task.contradictions(experiment.task)
    ]
    problems += _other_splits(task, experiment.task)
    most = task.num_test_tasks if evaluate.split == "test" else None
    if most is not None and evaluate.episodes > most:
        text = f"must be at most {most}, the number of test tasks (got {evaluate.episodes})"
        problems.append(("evaluate.episodes", text))
    return problems


def _other_splits(task: TaskComponent, trained: TaskComponent) -> list[tuple[str, str]]:
    """Return fields by which test tasks of the data of training are split in another way."""
    path = getattr(task, "path", "")
    if type(task) is not type(trained) or path is None or path != getattr(trained, "path", ""):
        return []
    why = "classes or rows of the training would be in the test"
    return [
        (f"evaluate.task.{name}", f"is {now!r}, and in training {before!r}: {why}")
        for name in task.split_fields
        if (now := getattr(task, name)) != (before := getattr(trained, name))
    ]


def _same_source(experiment: Experiment) -> bool:
    """Return whether the test tasks are of a source that training samples from."""
    tested, trained = (
        _sources_in(task.model_dump()) for task in (experiment.test_task, experiment.task)
    )
    return bool(tested & trained)


def _sources_in(section: Any) -> set[str]:
    """Return the names of the sources of a task section, including those that it mixes."""
    values = section.values() if isinstance(section, dict) else section
    if not isinstance(section, dict | list | tuple):
        return set()
    names = {str(section["source"])} if isinstance(section, dict) and "source" in section else set()
    return names.union(*map(_sources_in, values))
