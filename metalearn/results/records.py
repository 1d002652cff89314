"""Finished run directories as frozen records, from which everything else is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metalearn.component import MethodComponent
from metalearn.config.registry import METHODS
from metalearn.errors import ConfigError
from metalearn.evaluate import stats
from metalearn.evaluate.cost_block import LEARNING, UNKNOWN, per_task
from metalearn.storage.files import read_json, read_npz, read_text
from metalearn.storage.schema import Config, Environment, Line, Result, check_schema
from metalearn.storage.yaml import read_yaml

Array = NDArray[np.float64]
Json = dict[str, Any]
# Folders of a run that hold no runs of their own.
_INSIDE = {"tune", "trials", "evaluations", "checkpoints", "wandb", "tensorboard"}


@dataclass(frozen=True)
class Run:
    """One finished run directory."""

    path: Path
    label: str
    seed: int
    result: Json
    config: Json
    config_text: str
    environment: Json
    metrics: list[Json]

    @property
    def name(self) -> str:
        return f"{self.label} seed {self.seed}"

    @property
    def task(self) -> Json:
        """The new tasks, as in the result; empty if it does not have them."""
        return self.result.get("task") or {}

    @property
    def method_config(self) -> Json:
        """The `method` of the configuration."""
        return self.config.get("method") or {}

    @property
    def test(self) -> Json:
        return dict(self.result["test"])

    @property
    def traits(self) -> Json:
        return self.result.get("traits") or {}

    @property
    def family(self) -> str:
        """The family of the method."""
        return str(self._fact("family", lambda kind: kind.family) or "")

    @property
    def palette_index(self) -> int:
        """The index of the method in the palette of figures."""
        index = self._fact("place", lambda kind: kind.palette_index)
        return MethodComponent.palette_index if index is None else int(index)

    @property
    def acts_on_new_tasks(self) -> bool:
        """Whether the method has a field that takes effect on new tasks."""
        return bool(self._fact("acts_on_new_tasks", lambda kind: kind.acts_on_new_tasks(), True))

    def _fact(
        self, name: str, of: Callable[[type[MethodComponent]], Any], unknown: Any = None
    ) -> Any:
        """Return a fact about the method: from the result, else from the class of that name."""
        if self.result.get(name) is not None:
            return self.result[name]
        kind = METHODS.get(str(self.result.get("method")))
        return unknown if kind is None else of(kind)

    @property
    def chance(self) -> float:
        """Accuracy of a guess: 1/N, or its mean over tasks of variable N; 0 if N is not known."""
        ways = int(self.task.get("ways") or 0)
        return float(self.task.get("chance") or 0.0) or (1 / ways if ways else 0.0)

    @property
    def steps(self) -> list[int]:
        return [int(step) for step in self.test["steps"]]

    @property
    def metric(self) -> str:
        return str(self.result["headline"]["metric"])

    @property
    def episodes(self) -> int:
        """The number of test tasks."""
        return int((self.result.get("episodes") or {}).get("count") or 0)

    @property
    def headline_step(self) -> int:
        return int(self.result["headline"]["step"])

    @property
    def headline_point(self) -> int:
        """The index of the headline step on the curve; of a single point, that one."""
        if self.headline_step not in self.steps:
            return len(self.steps) - 1
        return self.steps.index(self.headline_step)

    @property
    def diverged(self) -> float | None:
        """Fraction of the tasks that diverged at the headline step."""
        return at(self.test.get("diverged"), self.headline_point)

    @cached_property
    def scores(self) -> dict[str, Array]:
        """`accuracy` and `loss`, each [E, P]; empty without the file."""
        file = self.path / "scores.npz"
        return read_npz(file) if file.exists() else {}

    def scores_of(self, metric: str) -> Array | None:
        """Return scores [E, P], or None if they were not written."""
        scores = self.scores.get(metric)
        fits = scores is not None and scores.ndim == 2 and scores.shape[1] == len(self.steps)
        return scores if fits else None

    @property
    def cost(self) -> Json:
        """The ledger without phases that were not written; UNKNOWN costs are None."""
        phases = self.result.get("cost") or {}
        return {phase: _without_unknown(entry) for phase, entry in phases.items()}

    def phase(self, name: str) -> Json:
        """Return the cost of one phase; empty if it was not measured."""
        return self.cost.get(name) or {}

    def valid(self, split: str) -> list[Json]:
        """Return validation points on tasks of `split`, in order of the step."""
        points = [line for line in self.metrics if line.get("kind") == "valid"]
        lines = [line for line in points if line.get("split") == split]
        return sorted(lines, key=lambda line: int(line["step"]))


@dataclass(frozen=True)
class Group:
    """All seeds of one label."""

    label: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def method(self) -> str:
        return str(self.first.result.get("method", self.label))

    @property
    def metric(self) -> str:
        return self.first.metric

    @property
    def headline_steps(self) -> list[int]:
        """The different headline steps of its seeds."""
        return sorted({run.headline_step for run in self.runs})

    @property
    def test_tasks(self) -> int:
        """The smallest number of test tasks of its seeds."""
        return min(run.episodes for run in self.runs)

    @property
    def normalisations(self) -> list[str]:
        return sorted({str(run.result.get("normalisation")) for run in self.runs})

    @property
    def transductive(self) -> bool:
        return any(run.result.get("transductive") for run in self.runs)

    @property
    def uses_steps(self) -> bool:
        return bool(self.first.traits.get("uses_steps", True))

    @property
    def higher_better(self) -> bool:
        return self.metric == "accuracy"

    def pooled_scores(self, metric: str) -> Array | None:
        """Return scores [S, E, P] if every seed has them for the same tasks and steps, else
        None."""
        tables = [run.scores_of(metric) for run in self.runs]
        known_tables = [scores for scores in tables if scores is not None]
        same = all(run.steps == self.first.steps for run in self.runs)
        if (
            len(known_tables) < len(tables)
            or not same
            or len({scores.shape for scores in known_tables}) != 1
        ):
            return None
        return np.stack(known_tables)

    def at_headline(self) -> Array | None:
        """Return scores at each seed's headline step: [S, E]."""
        tables = [run.scores_of(self.metric) for run in self.runs]
        points = [run.headline_point for run in self.runs]
        columns = [part[:, point] for part, point in zip(tables, points) if part is not None]
        whole = len(columns) == len(self.runs) and len({column.shape for column in columns}) == 1
        return np.stack(columns) if whole else None

    def value(self) -> float | None:
        """Return the headline value, mean over seeds; None if that of a seed is undefined."""
        return mean([run.result["headline"].get("value") for run in self.runs])

    def seconds(self, phase: str, kind: str = "seconds") -> float | None:
        """Return a cost of one phase, mean over seeds; None if it was not measured."""
        return mean([run.phase(phase).get(kind) for run in self.runs])

    def diverged(self) -> float | None:
        """Return the fraction of tasks that diverged at the headline step, mean over seeds."""
        return mean([run.diverged for run in self.runs])

    def once(self, phase: str, name: str) -> float | None:
        """Return the cost of a phase for all tasks together, mean over seeds.

        0 for a phase of new tasks."""
        return mean([_once(run.phase(phase), name) for run in self.runs])

    def each(self, phase: str, name: str) -> float | None:
        """Return the cost of a phase per new task, mean over seeds; 0 for other phases."""
        return mean([_each(run.phase(phase), name) for run in self.runs])

    def learning_seconds(self, kind: str) -> float | None:
        """Return search, retraining and all steps on one new task, mean over seeds.

        None if a part was not measured."""
        parts = [[_each(run.phase(phase), kind) for phase in LEARNING] for run in self.runs]
        known_parts = [[float(part) for part in own if part is not None] for own in parts]
        return mean([sum(own) if len(own) == len(LEARNING) else None for own in known_parts])

    def per_task_seconds(self) -> tuple[float | None, float | None]:
        """Return (learning, predicting) one task in a batch, or alone if no batch was timed."""
        kinds = ("seconds_batched", "seconds_alone")
        predict = [self.seconds("predict", kind) for kind in kinds]
        return first_known(*map(self.learning_seconds, kinds)), first_known(*predict)


def _once(entry: Json, name: str) -> float | None:
    """Return None if the phase is missing, or this was not measured."""
    if not per_task(entry):
        return entry.get(name)
    return (entry.get("once") or {name: 0.0}).get(name)


def _each(entry: Json, name: str) -> float | None:
    return None if not entry else entry.get(name) if per_task(entry) else 0.0


def _without_unknown(entry: Json | None) -> Json | None:
    """Return a phase of a ledger with None for costs of others that were not published."""
    if not entry:
        return entry
    return {name: None if value == UNKNOWN else value for name, value in entry.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing or not finite, or if there are none."""
    numbers = [float(value) for value in values if value is not None]
    return (
        stats.number(sum(numbers) / len(numbers))
        if numbers and len(numbers) == len(values)
        else None
    )


def at(values: Sequence[float | None] | None, place: int) -> float | None:
    """Return one entry of a list that may be missing or shorter, or None if it is not finite."""
    value = values[place] if values is not None and place < len(values) else None
    return None if value is None else stats.number(float(value))


def first_known(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def load(path: Path) -> Run:
    """Read one finished run directory.

    Raises ConfigError with the file that is missing or unreadable."""
    result = check_schema(Result, _read_object(path / "result.json"), path / "result.json")
    config, environment = path / "config.yaml", path / "environment.json"
    text = read_text(config) if config.exists() else ""
    config_data = read_yaml(config) if config.exists() else {}
    facts = _read_object(environment) if environment.exists() else {}
    return Run(
        path=path,
        label=str(result["label"]),
        seed=int(result["seed"]),
        result=result,
        config=check_schema(Config, config_data, config) if isinstance(config_data, dict) else {},
        config_text=text,
        environment=check_schema(Environment, facts, environment),
        metrics=_read_lines(path / "metrics.jsonl"),
    )


def _read_object(path: Path) -> Json:
    if not path.exists():
        text = "does not exist: the run has not finished, or this is not a run directory"
        raise ConfigError((str(path), text))
    data = read_json(path)
    if not isinstance(data, dict):
        raise ConfigError((str(path), "is not a JSON object"))
    return data


def _read_lines(path: Path) -> list[Json]:
    """Return the complete lines of a JSON-lines file: the last may be cut off in a killed run."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            rows += (
                [check_schema(Line, json.loads(line), f"{path}:{number}")] if line.strip() else []
            )
        except ConfigError:
            raise
        except (ValueError, RecursionError) as error:
            raise ConfigError((f"{path}:{number}", str(error))) from error
    return rows


def run_directories(root: Path) -> tuple[list[Path], list[Path]]:
    """Return (finished, unfinished) run directories at or under `root`.

    Trials and evaluations are excluded."""
    if (root / "result.json").exists():
        return [root], []
    finished: list[Path] = []
    unfinished: list[Path] = []
    for file in sorted(root.rglob("config.yaml")):
        inside = file.parent.relative_to(root).parts
        if _INSIDE & set(inside) or not inside:
            continue
        (finished if (file.parent / "result.json").exists() else unfinished).append(file.parent)
    return finished, unfinished


def is_comparison(root: Path) -> bool:
    return (root / "methods").is_dir()


def group(runs: Iterable[Run]) -> list[Group]:
    """Group runs by label, best headline first.

    Labels that occur in two experiments are extended by the name of the experiment."""
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    groups: list[Group] = []
    for label, members in by_label.items():
        names = {str(run.result.get("experiment", "")) for run in members}
        for name in sorted(names):
            own = [run for run in members if str(run.result.get("experiment", "")) == name]
            groups += _seeds_apart(label if len(names) == 1 else f"{label} ({name})", own)
    return sorted(groups, key=_rank)


def _seeds_apart(label: str, runs: list[Run]) -> list[Group]:
    """Return one group, or a group per folder if a seed occurs twice."""
    if len({run.seed for run in runs}) == len(runs):
        return [Group(label, sorted(runs, key=lambda run: run.seed))]
    return [Group(f"{label} ({run.path.parent.name}/{run.path.name})", [run]) for run in runs]


def _rank(item: Group) -> tuple[float, str]:
    value = item.value()
    if value is None:
        return math.inf, item.label
    return (-value if item.higher_better else value), item.label
