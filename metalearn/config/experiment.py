"""From an experiment file and overrides to resolved experiments, all errors at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metalearn.component import Component, MethodComponent, ModelComponent, TaskComponent
from metalearn.config import shipped
from metalearn.config.file import (
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    DEFAULT_TASK,
    PYTHON,
    SECTIONS,
    Entry,
    File,
    Search,
    get_label,
    loss_problems,
    method_problems,
    parse_entry,
)
from metalearn.config.overrides import apply_overrides, lay_over, with_overlay
from metalearn.config.plugins import load_entry_points, load_plugins, plugins_of, unloaded
from metalearn.config.registry import METHODS, TABLES
from metalearn.config.sections import Budget, Evaluate, Published, Run, TuneRange, low_targets
from metalearn.config.tuning import tune_ranges
from metalearn.config.validate import Problems, partly_validated, validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.losses import FUNCTIONS
from metalearn.storage.files import sha256_of_json, write_atomic
from metalearn.storage.yaml import read_yaml

HELD = {"sha256", "data_sha256"}  # fields with the hash of an object passed in Python
NOT_IN_HASH = (
    *("executor", "chunk", "checkpoint_inner", "device"),
    *("threads", "workers", "track", "keep_last"),
)


@dataclass(frozen=True)
class Experiment:
    """One method on one task, resolved: what a run directory's config.yaml holds."""

    name: str
    label: str
    task: TaskComponent
    test_task: TaskComponent  # the task section with evaluate.task laid over it
    model: ModelComponent
    method: Any  # a MethodComponent; Any, because code of its kind reads its own fields
    tune: dict[str, TuneRange]
    start: str | None
    run: Run
    evaluate: Evaluate
    budget: Budget
    published: Published | None
    contains: MethodComponent | None = None  # what a shared search learns each architecture with
    found: tuple[int, ...] | None = None  # the genotype that the search of this run has found
    loss: str | None = None  # of the tasks, by name; None: by their kind
    plugins: tuple[str, ...] = ()  # modules or files that its components come from

    @property
    def base_method(self) -> MethodComponent:
        """The component that learns: the method, or the one that a shared search contains."""
        return self.method if self.contains is None else self.contains

    def with_base_method(self, component: MethodComponent) -> Experiment:
        return self.replace(**{"method" if self.contains is None else "contains": component})

    def resolved(self) -> dict[str, Any]:
        """Return plain data that `load` reads back to the same experiment."""
        method = {**_dump(self.method), "label": self.label}
        if self.tune:
            method["tune"] = {name: _clean(_dump(span)) for name, span in self.tune.items()}
        if self.start:
            method["start"] = self.start
        if self.contains is not None:
            method["contains"] = _dump(self.contains)
        if self.found is not None:
            method["found"] = list(self.found)
        evaluate = {**_dump(self.evaluate), "task": _dump(self.test_task)}
        data: dict[str, Any] = {"experiment": self.name, "task": _dump(self.task)}
        data |= {"model": _dump(self.model), "method": method}
        data |= {"run": _dump(self.run), "evaluate": evaluate, "budget": _dump(self.budget)}
        if self.loss is not None:
            data["loss"] = self.loss
        if self.plugins:
            data["plugins"] = list(self.plugins)
        if self.published:
            data["published"] = _clean(_dump(self.published))
        return data

    def hash(self) -> str:
        """Return the SHA-256 of the resolved config.

        Leaves out where and how it is executed, and later fields at their defaults."""
        data = self._hashed()
        data["task"] = self.task.without_implied(data["task"])
        data["evaluate"]["task"] = self.test_task.without_implied(data["evaluate"]["task"])
        return sha256_of_json(data)

    def has_hash(self, recorded: str) -> bool:
        """Return whether `recorded` is the hash, with or without implied values of tasks."""
        return recorded in (self.hash(), sha256_of_json(self._hashed()))

    def _hashed(self) -> dict[str, Any]:
        data = self.resolved()
        data.pop("plugins", None)
        data.get("published", {}).pop("departures", None)  # a remark: nothing is computed from it
        for section in ("task", "model", "method", "run", "evaluate", "budget"):
            data[section] = getattr(self, section).without_later(data[section])
        data["run"] = {key: value for key, value in data["run"].items() if key not in NOT_IN_HASH}
        data["evaluate"]["task"] = self.test_task.without_later(data["evaluate"]["task"])
        if self.contains is not None:
            data["method"]["contains"] = self.contains.without_later(data["method"]["contains"])
        return data

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the experiment as the text of a file, and write it to `path` if that is set.

        `metalearn train` reads it back to the same hash. Components and data from Python appear by
        name and hash: such a file works only in this process, and its first line says so."""
        text: str = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)
        if in_python := self.in_python():
            text = f"# Needs what was given in Python: {', '.join(in_python)}.\n{text}"
        if path is not None:
            write_atomic(Path(path), text.encode())
        return text

    def in_python(self) -> list[str]:
        """Return the sections whose component or data exist only in a Python process."""
        parts = {"task": self.task, "model": self.model, "method": self.method}
        from_python = [name for name, part in parts.items() if HELD & {k for k, v in part if v}]
        local_classes = [
            name
            for name, part in parts.items()
            if not type(part).__module__.startswith("metalearn.") and not plugins_of([part])
        ]
        loss = ["loss"] if (self.loss or "").startswith(PYTHON) else []
        return list(dict.fromkeys([*from_python, *local_classes, *loss]))

    def with_seed(self, seed: int) -> Experiment:
        return self.replace(run=self.run.model_copy(update={"seeds": (seed,)}))

    def replace(self, **changes: Any) -> Experiment:
        return Experiment(**{**self.__dict__, **changes})


@dataclass(frozen=True)
class Plan:
    """An experiment file: one experiment, or the methods of a comparison."""

    name: str
    comparison: bool
    experiments: tuple[Experiment, ...]
    notes: tuple[str, ...] = ()
    file: str = ""
    demonstration: bool = False
    contrasts: tuple[tuple[str, str], ...] | None = None  # pairs of labels; None: by family


def find_file(name: str) -> Path:
    """Return the experiment file of a path or of a name (`metalearn list experiments`)."""
    return shipped.find(name, "experiment")


def load(name: str, overrides: Sequence[str] = (), *, plugins: bool = True) -> Plan:
    """Read a file, apply overrides and check; raises ConfigError with every problem.

    `plugins`: whether to import the plug-ins that the file names."""
    path = find_file(name)
    data = read_yaml(path)
    if not isinstance(data, dict):
        text = f"must be a mapping with the sections {', '.join(File.model_fields)}"
        raise ConfigError((str(path), text))
    plugin_names = data.get("plugins")
    if (
        plugins
        and isinstance(plugin_names, list)
        and all(isinstance(plugin, str) for plugin in plugin_names)
    ):
        load_plugins(plugin_names, path.parent)
    load_entry_points()
    data, notes = apply_overrides(data, overrides)
    try:
        name = path.stem
        return parse(data, name, tuple(notes), str(path), require_method=True)
    except ConfigError as error:
        places = [f"{path}: {place}" if place else str(path) for place, _ in error.problems]
        texts = [text for _, text in error.problems]
        raise ConfigError(*zip(places, texts, strict=True)) from None


def parse(
    data: dict[str, Any],
    default_name: str = "experiment",
    notes: tuple[str, ...] = (),
    file: str = "",
    *,
    require_method: bool = False,
) -> Plan:
    """Resolve a mapping to a plan; raises ConfigError with every problem.

    `require_method`: a mapping without a method is a problem, not MAML."""
    problems: Problems = method_problems(data) if require_method else []
    config = partly_validated(File, {"experiment": default_name, **data}, "", problems)
    problems.extend(loss_problems(config.loss))
    comparison = "methods" in data
    if comparison and "method" in data:
        text = (
            "must have either `method` (metalearn train) or `methods` (metalearn compare), not both"
        )
        raise ConfigError(*problems, ("method", text))
    if comparison:
        experiments = _experiments(config, problems)
    else:
        experiments = [_experiment(config, config.method, "method", False, problems)]
    if problems:
        raise ConfigError(*_with_plugins(once(problems), config.plugins))
    resolved = tuple(experiment for experiment in experiments if experiment is not None)
    contrasts = None if config.contrasts is None else tuple((a, b) for a, b in config.contrasts)
    return Plan(
        config.experiment, comparison, resolved, notes, file, config.demonstration, contrasts
    )


def _with_plugins(problems: Problems, plugins: list[str]) -> Problems:
    """Append to problems about unknown names the plug-ins that may define them."""
    hint = "".join(f" --plugin {name}" for name in unloaded(plugins))
    text = f"; it may come from a plug-in of this file, which is not imported automatically:{hint}"
    return [(place, why + text * (hint != "" and "unknown" in why)) for place, why in problems]


def _experiments(config: File, problems: Problems) -> list[Experiment | None]:
    """Return one experiment per method of a comparison."""
    labels = [get_label(item) for item in config.methods]
    rows = [
        _experiment(config, item, f"methods.{label}", True, problems)
        for item, label in zip(config.methods, labels)
    ]
    text = "two methods have this label: set a different `label` for each"
    twice = sorted({label for label in labels if labels.count(label) > 1})
    problems.extend((f"methods.{label}", text) for label in twice)
    unknown = sorted({name for pair in config.contrasts or [] for name in pair} - set(labels))
    problems.extend(
        ("contrasts", f"unknown label {name!r}; {did_you_mean(name, labels)}") for name in unknown
    )
    return rows


def _experiment(
    file: File, item: dict[str, Any], place: str, comparison: bool, problems: Problems
) -> Experiment | None:
    """Return the experiment of one method of a file; None with its problems added."""
    before = len(problems)
    entry = parse_entry(item, comparison, place, problems)
    task, test_task = _tasks(file, entry, problems)
    default_model = (task and task.default_model) or DEFAULT_MODEL
    model_values = with_overlay(file.model, entry.overlay("model"), "name", default_model)
    model = _component("models", model_values, default_model, "model", problems)
    method, contains, found = _method(entry, place, problems)
    sections: dict[str, Any] = {
        key: validated(kind, lay_over(getattr(file, key), entry.overlay(key)), key, problems)
        for key, kind in SECTIONS.items()
    }
    base_method = method if contains is None else contains
    tune = tune_ranges(entry.tune, base_method, sections["budget"], place, problems)
    problems.extend(
        (f"{place}.start", text) for text in _check_start(entry, base_method, contains, found)
    )
    problems.extend(_low_targets(sections["evaluate"], test_task))
    if len(problems) > before:
        problems.extend(_build_problems(task))
        problems[before:] = once(problems[before:])
        return None
    sections["published"] = None if sections["published"] == Published() else sections["published"]
    sections |= {"loss": file.loss, "plugins": _plugins(file, task, model, method, contains)}
    return Experiment(
        name=file.experiment,
        label=method.name if entry.label is None else entry.label,
        task=(trained := task.resolve(0)),
        test_task=test_task.after_training_on(trained).resolve(0),
        model=model,
        method=method,
        tune=tune,
        start=entry.start,
        contains=contains,
        found=found,
        **sections,
    )


def _plugins(file: File, *components: Any) -> tuple[str, ...]:
    parts = [*components, FUNCTIONS.get(file.loss or "")]
    return tuple(sorted(plugins_of(parts, file.plugins)))


def _tasks(file: File, entry: Entry, problems: Problems) -> tuple[Any, Any]:
    """Return (training tasks, test tasks); `evaluate.task` overrides the file's task section."""
    values = with_overlay(file.task, entry.overlay("task"), "source", DEFAULT_TASK)
    task = _component("tasks", values, DEFAULT_TASK, "task", problems)
    overlay = file.evaluate.get("task") or {}
    if not isinstance(overlay, dict):
        return task, task  # a problem of the evaluate section
    values = with_overlay(file.task, overlay, "source", DEFAULT_TASK)
    return task, _component("tasks", values, DEFAULT_TASK, "evaluate.task", problems)


def _method(
    entry: Entry, place: str, problems: Problems
) -> tuple[Any, Any, tuple[int, ...] | None]:
    """Return (method, method that a shared search contains, genotype that it has found)."""
    fields = entry.fields
    kind = METHODS.get(str(fields.get("name", DEFAULT_METHOD)))
    default = None if kind is None else kind.contains_by_default
    if default is None:
        return _component("methods", fields, DEFAULT_METHOD, place, problems), None, None
    search = partly_validated(Search, fields, place, problems)
    contains_key = f"{place}.contains"
    contains: Any = _component("methods", search.contains, default, contains_key, problems)
    if contains is not None and not contains.can_be_contained:
        text = f"{contains.name} has no model that a search can choose"
        problems.append((f"{contains_key}.name", f"{text}: use a method such as maml or fine_tune"))
    fields = dict(search.model_extra or {})
    method = _component("methods", fields, DEFAULT_METHOD, place, problems)
    return method, contains, None if search.found is None else tuple(search.found)


def _check_start(
    entry: Entry, base_method: Any, contains: Any, found: tuple[int, ...] | None
) -> list[str]:
    """Return why a method cannot start from its `start`, or without one."""
    if entry.start is not None and contains is not None and found is None:
        text = "needs a network, which the search has not found yet: remove start, or set found"
        return [text]
    needs = "" if entry.start or base_method is None else base_method.needs_start
    return [needs] if needs else []


def _low_targets(evaluate: Any, task: Any) -> Problems:
    """Return problems of targets of accuracy that a random guess reaches too often."""
    ways = dict(task).get("ways") if isinstance(task, TaskComponent) else None
    if not isinstance(evaluate, Evaluate) or type(ways) is not int or ways < 2:
        return []
    return low_targets(evaluate, ways)


def _component(
    table: str, values: dict[str, Any], default: str, place: str, problems: Problems
) -> Any:
    """Return the component of a table that a section describes; None with its problems added."""
    kinds, tag = TABLES[table], "source" if table == "tasks" else "name"
    name = values.get(tag, default)
    if not isinstance(name, str) or name not in kinds:
        text = f"unknown {table[:-1]} {name!r}; {did_you_mean(str(name), kinds)}"
        problems.append((f"{place}.{tag}", text))
        return None
    return validated(kinds[name], {**values, tag: name}, place, problems)


def _dump(component: Component) -> dict[str, Any]:
    data: dict[str, Any] = component.model_dump(mode="json")
    return data


def _clean(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value not in (None, {}, "")}


def _build_problems(task: Any) -> Problems:
    """Return problems that only building the source can find, such as more ways than classes."""
    try:
        if task is not None:
            task.build(split="train", seed=0)
    except ConfigError as error:
        return list(error.under("task").problems)
    return []


def once(problems: Problems) -> Problems:
    """Remove duplicates, and problems of the test task that the task section already has."""
    inherited = {(f"evaluate.{key}", text) for key, text in problems if key.startswith("task.")}
    return [problem for problem in dict.fromkeys(problems) if problem not in inherited]
