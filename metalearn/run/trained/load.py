"""A finished or interrupted run, loaded for use on any episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metalearn.config.build import build_to_test, hold_loss, learner_and_method
from metalearn.config.experiment import Experiment
from metalearn.errors import ConfigError
from metalearn.models.module import as_model
from metalearn.report.numbers import with_ci
from metalearn.report.run_figures import TestedRun
from metalearn.results import records
from metalearn.rng import fold_in
from metalearn.run.directory import check_weights, recorded_tasks, stored_experiment
from metalearn.run.trained.adapted import AdaptedTask, adapt_task, check_columns
from metalearn.run.warm_start import tested_checkpoint
from metalearn.storage import checkpoint
from metalearn.storage.schema import read_result
from metalearn.tree import leaves
from metalearn.types import EpisodeSpec, Learner, MetaState, Method, TaskSource


@dataclass(frozen=True, repr=False)
class LoadedRun(TestedRun):
    """A trained run, as returned by `train` and `load_run`."""

    method: Method  # built for the test tasks
    state: MetaState
    source: TaskSource  # of the test tasks
    config: Experiment
    folder: Path

    def adapt(self, x: Any, y: Any, steps: int | None = None, seed: int = 0) -> AdaptedTask:
        """Learn one new task of labelled examples, numpy or torch.

        x is [B, *X], images as floats in 0..1; y is [B] labels of any type, with any number of
        examples per class, or [B, C] values. `steps` defaults to the step of the run's headline
        result. Raises ConfigError for examples that do not fit the run."""
        if steps is None:
            steps = self._headline_step()
        spec, config = self.method.spec, self.config

        def build(spec: EpisodeSpec) -> tuple[Learner, Method]:
            return learner_and_method(config, spec)

        task = config.test_task
        check_columns(getattr(x, "columns", None), task.input_names)
        facts = recorded_tasks(self.folder).get("test", {}).get("facts", {})
        pixels = task.pixels_in_unit or "pixels" in facts  # of bytes, which were divided by 255
        preprocessing = task.transform, task.target_moments_used, pixels
        adapted = adapt_task(build, self.state.meta, spec, x, y, steps, seed, *preprocessing)
        return replace(adapted, names=task.input_names)

    def record(self) -> records.Run:
        """Return the files of the run. Raises ConfigError if it is not finished."""
        return records.load(self.folder)

    def __repr__(self) -> str:
        """Show method, tasks, the headline result and the folder; no tensors."""
        config, result = self.config, ""
        if (self.folder / "result.json").exists():
            head = read_result(self.folder)["headline"]
            value = with_ci(head["value"], head["ci95"], head["metric"] == "accuracy")
            steps = "1 step" if head["step"] == 1 else f"{head['step']} steps"
            result = f": {head['metric']} {value} after {steps} on new tasks"
        tasks = str(dict(config.task)["source"])
        trained = f"{int(self.state.step)} of {config.run.meta_steps} meta-steps"
        return f"{config.method.name} on {tasks}, {trained}{result}; {self.folder}"

    def __reduce__(self) -> Any:
        """Pickle the folder only."""
        return load_run, (self.folder,)

    def _headline_step(self) -> int:
        if (self.folder / "result.json").exists():
            return int(read_result(self.folder)["headline"]["step"])
        headline = self.config.evaluate.headline
        return headline if isinstance(headline, int) else self.config.evaluate.steps[-1]


def load_run(folder: str | Path, *, model: Any = None, loss: Any = None) -> LoadedRun:
    """Load the run in `folder`: the tested state, or the newest valid one if interrupted.

    The data are needed only to sample episodes from `source`. `model` and `loss` are the torch
    module and the function that were passed in Python when the run was started, if this process
    does not have them. Raises ConfigError if the folder is not a run directory, or has no
    checkpoint that matches its SHA-256.

    >>> run = ml.load_run("runs/example")  # that of `train`
    >>> task = run.adapt(torch.rand(4, 1), torch.rand(4, 1))
    >>> tuple(task.predict(torch.rand(2, 1)).shape)
    (2, 1)
    """
    folder = Path(folder)
    objects = (
        None if model is None else as_model(model),
        None if loss is None else hold_loss(loss),
    )
    experiment = stored_experiment(folder)
    parts = build_to_test(experiment, recorded_tasks(folder), same_test=True)
    check_weights(folder, experiment)
    if parts.method.prepare is not None:
        text = f"its search is not finished: continue with metalearn resume {folder}"
        raise ConfigError((str(folder), text))
    state = parts.method.init(fold_in(experiment.run.seeds[0], "init"))
    if leaves(state.meta):
        state = _trained_state(folder, state)
    del objects  # the experiment refers to them now
    return LoadedRun(parts.test_method, state, parts.test, experiment, folder)


def _trained_state(folder: Path, like: MetaState) -> MetaState:
    if (folder / "result.json").exists():
        return checkpoint.load(tested_checkpoint(folder), like)
    newest = checkpoint.newest(folder / "checkpoints", like)
    if newest is None:
        raise ConfigError((str(folder), "contains no valid checkpoint yet"))
    return newest[1]
