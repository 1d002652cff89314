"""Options that the device or other options of an experiment rule out."""

from __future__ import annotations

from typing import Any

from metalearn.config.experiment import Experiment
from metalearn.config.sections import Run
from metalearn.executors.executor import COMPILED, why_not


def misfits(run: Run, device: str) -> list[tuple[str, str]]:
    """What `run` asks of a device that it cannot do: (place, sentence)."""
    found = []
    if (why := why_not(run.executor, device, run.chunk)) is not None:
        found.append(("run.executor", why))
    if run.on_nan == "rollback":
        text = "rollback was removed: use skip, which leaves such a step out, or raise"
        found.append(("run.on_nan", text))
    if run.checkpoint_inner and run.executor in (*COMPILED, "traced"):
        text = f"saves no memory with executor {run.executor}, which merges repeated computations"
        found.append(("run.checkpoint_inner", f"{text}: use chunk, vmap or loop"))
    if run.precision == "tf32" and not device.startswith("cuda"):
        text = f"tf32 needs a CUDA device (got {device}): use float32"
        found.append(("run.precision", text))
    if run.precision != "float32" and run.dtype != "float32":
        text = f"{run.precision} needs run.dtype float32 (got {run.dtype}): omit one of the two"
        found.append(("run.precision", text))
    if run.engine != "native" and (run.precision != "float32" or run.checkpoint_inner):
        text = f"{run.engine} supports neither run.precision nor run.checkpoint_inner: omit them"
        found.append(("run.engine", text))
    return found


def choices_by_seen_classes(experiment: Experiment) -> list[tuple[str, str]]:
    """What validation tasks would choose where training draws from their classes, too."""
    if not experiment.task.trains_on_validation:
        return []
    why = "training uses the validation classes, so they cannot be used for selection"
    found = []
    if experiment.evaluate.checkpoint != "last":
        text = f"is {experiment.evaluate.checkpoint}, but {why}: use last"
        found.append(("evaluate.checkpoint", text))
    if experiment.evaluate.split == "valid" and _same_source(experiment):
        found.append(("evaluate.split", "is valid, but training uses its classes: use test"))
    if experiment.run.validate.patience is not None:
        text = f"stops training by validation tasks, but {why}: omit it"
        found.append(("run.validate.patience", text))
    if experiment.evaluate.headline_step == "tuned":
        found.append(("evaluate.headline_step", f"is tuned, but {why}: use a number of steps"))
    if experiment.tune:
        found.append(("method.tune", f"tunes on validation tasks, but {why}: omit it"))
    return found


def contradictions(experiment: Experiment) -> list[tuple[str, str]]:
    """What the test tasks ask of the network that contradicts its training: (place, sentence)."""
    found = experiment.test_task.contradictions(experiment.task)
    return [(f"evaluate.task.{name}", text) for name, text in found]


def _same_source(experiment: Experiment) -> bool:
    """Whether the test tasks are of a source that training draws from."""
    tested, trained = (
        _sources_in(task.model_dump()) for task in (experiment.test_task, experiment.task)
    )
    return bool(tested & trained)


def _sources_in(section: Any) -> set[str]:
    """The names of the sources of a task section, also of those that it mixes."""
    inside = section.values() if isinstance(section, dict) else section
    if not isinstance(section, dict | list | tuple):
        return set()
    own = {str(section["source"])} if isinstance(section, dict) and "source" in section else set()
    return own.union(*map(_sources_in, inside))
