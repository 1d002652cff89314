"""From an experiment file and overrides to one validated, resolved experiment a method; all errors
at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from metalearn.component import Component
from metalearn.config import shipped
from metalearn.config.overrides import DEFAULT_METHOD, apply_overrides, label_of
from metalearn.config.registry import TABLES
from metalearn.config.sections import Budget, Evaluate, Published, Run, TuneRange
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.storage.yaml import read_yaml

SECTIONS = (
    "experiment",
    "task",
    "model",
    "method",
    "methods",
    "run",
    "evaluate",
    "budget",
    "published",
    "demonstration",
)
OVERLAYS = ("task", "model", "run", "evaluate")
OWN_TEST = ("episodes", "chunk")  # what one method of a comparison may be tested with otherwise
NOT_IN_HASH = ("executor", "chunk", "checkpoint_inner", "device", "threads", "track", "keep_last")
LATER = {
    "run": ("on_nan",)
}  # fields younger than schema 1: at their default a run keeps the hash that it was given
PLAIN: dict[str, type[Component]] = {
    "run": Run,
    "evaluate": Evaluate,
    "budget": Budget,
    "published": Published,
}


@dataclass(frozen=True)
class Experiment:
    """One method on one task, resolved: what a run directory's config.yaml holds."""

    name: str
    label: str
    task: Any
    test_task: Any  # the task section with evaluate.task laid over it
    model: Any
    method: Any
    tune: dict[str, TuneRange]
    start: str | None
    run: Run
    evaluate: Evaluate
    budget: Budget
    published: Published | None
    contains: Any = None  # what a shared search learns each architecture with
    found: tuple[int, ...] | None = None  # the genotype that the search of this run has found

    @property
    def learns(self) -> Any:
        """The component that learns: the method, or the one that a shared search contains."""
        return self.method if self.contains is None else self.contains

    def with_learns(self, component: Any) -> Experiment:
        return self.replace(**{"method" if self.contains is None else "contains": component})

    def resolved(self) -> dict[str, Any]:
        """Plain data that `load` reads back to the same experiment."""
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
        data: dict[str, Any] = {
            "experiment": self.name,
            "task": _dump(self.task),
            "model": _dump(self.model),
            "method": method,
        }
        data |= {"run": _dump(self.run), "evaluate": evaluate, "budget": _dump(self.budget)}
        if self.published:
            data["published"] = _clean(_dump(self.published))
        return data

    def hash(self) -> str:
        """SHA-256 of the resolved config without where and how it is executed."""
        data = self.resolved()
        data["run"] = {key: value for key, value in data["run"].items() if key not in NOT_IN_HASH}
        for section, names in LATER.items():
            fields = type(getattr(self, section)).model_fields
            data[section] = {
                k: v for k, v in data[section].items() if k not in names or v != fields[k].default
            }
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

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


def find_file(name: str) -> Path:
    """The experiment file of a path or of a name (`metalearn list experiments`)."""
    return shipped.find(name, "experiment")


def load(name: str, overrides: Sequence[str] = ()) -> Plan:
    """Read, override, check; raises ConfigError with every problem."""
    path = find_file(name)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError((str(path), "should be a mapping of sections: " + ", ".join(SECTIONS)))
    data, notes = apply_overrides(data, overrides)
    try:
        return parse(data, default_name=path.stem, notes=tuple(notes), file=str(path))
    except ConfigError as error:
        raise ConfigError(
            *((f"{path}: {place}" if place else str(path), text) for place, text in error.problems)
        ) from None


def parse(
    data: dict[str, Any],
    default_name: str = "experiment",
    notes: tuple[str, ...] = (),
    file: str = "",
) -> Plan:
    """The plan of a mapping; raises ConfigError with every problem."""
    problems: list[tuple[str, str]] = []
    for key in data:
        if key not in SECTIONS:
            problems.append((str(key), f"unknown section; {did_you_mean(str(key), SECTIONS)}"))
    for key in (*OVERLAYS, "method", "evaluate", "budget", "published"):
        if data.get(key) is not None and not isinstance(data[key], dict):
            problems.append((key, f"should be a mapping, not {data[key]!r}"))
    name = data.get("experiment", default_name)
    if (
        not isinstance(name, str)
        or not name
        or any(c in name for c in "/\\\0")
        or name in (".", "..")
    ):
        problems.append(("experiment", f"should be a name without slashes, not {name!r}"))
    demonstration = data.get("demonstration", False)
    if not isinstance(demonstration, bool):
        problems.append(("demonstration", f"should be true or false, not {demonstration!r}"))
    refused = {place for place, _ in problems}
    data = {key: value for key, value in data.items() if str(key) not in refused}
    name = name if "experiment" not in refused else default_name
    if "methods" in data and "method" in data:
        raise ConfigError(
            *problems,
            (
                "method",
                "a file holds `method` (metalearn train) or `methods` (metalearn compare), not "
                "both",
            ),
        )
    if "methods" not in data:
        made = _experiment(
            name, data, dict(data.get("method") or {}), problems, "method", comparison=False
        )
        if problems or made is None:
            raise ConfigError(*problems)
        return Plan(name, False, (made,), notes, file)
    experiments = _methods(name, data, problems)
    if problems:
        raise ConfigError(*once(problems))
    return Plan(name, True, tuple(experiments), notes, file, demonstration)


def _methods(name: str, data: dict[str, Any], problems: list[tuple[str, str]]) -> list[Experiment]:
    items = data["methods"]
    if (
        not isinstance(items, list)
        or not items
        or not all(isinstance(item, dict) for item in items)
    ):
        problems.append(
            ("methods", "should be a list of mappings, one a method, each with a `name`")
        )
        return []
    made: list[Experiment] = []
    for item in items:
        found = _experiment(
            name, data, dict(item), problems, f"methods.{label_of(item)}", comparison=True
        )
        if found is not None:
            made.append(found)
    labels = [label_of(item) for item in items]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(
            (f"methods.{label}", "two methods have this label: give each its own `label`")
        )
    return made


def _experiment(
    name: str,
    data: dict[str, Any],
    item: dict[str, Any],
    problems: list[tuple[str, str]],
    place: str,
    comparison: bool,
) -> Experiment | None:
    before = len(problems)
    label, tune, start = (
        item.pop("label", None),
        item.pop("tune", None) or {},
        item.pop("start", None),
    )
    overlays = _overlays(item, comparison, place, problems)
    base_task = dict(data.get("task") or {})
    task = _tagged(
        "tasks",
        "source",
        _laid_over(base_task, overlays["task"], "source"),
        "glyphs",
        "task",
        problems,
    )
    evaluate_data = dict(data.get("evaluate") or {})
    over = evaluate_data.get("task") or {}
    test_task = task
    if isinstance(over, dict):
        test_values = _laid_over(base_task, over, "source")
        test_task = _tagged("tasks", "source", test_values, "glyphs", "evaluate.task", problems)
    default_model = "conv4" if task is None else task.default_model
    model_values = _laid_over(dict(data.get("model") or {}), overlays["model"], "name")
    model = _tagged("models", "name", model_values, default_model, "model", problems)
    contains, found = _searches(item, place, problems)
    method = _tagged("methods", "name", item, DEFAULT_METHOD, place, problems)
    plain: dict[str, Any] = {}
    for key, kind in PLAIN.items():
        values = {**dict(data.get(key) or {}), **overlays.get(key, {})}
        plain[key] = validated(kind, values, key, problems)
    label = str(label) if label is not None else getattr(method, "name", place.rpartition(".")[2])
    if not label or any(c in label for c in "/\\\0."):
        problems.append(
            (f"{place}.label", f"should be a name without slashes and dots, not {label!r}")
        )
    ranges = _tune(tune, method if contains is None else contains, plain["budget"], place, problems)
    if start is not None and not isinstance(start, str):
        problems.append(
            (f"{place}.start", f"should be a run directory or an experiment, not {start!r}")
        )
    if start is not None and contains is not None and found is None:
        text = (
            "needs a network: a search that is still to come has none to begin from; leave "
            "start out, or give found"
        )
        problems.append((f"{place}.start", text))
    lacking = "" if start else getattr(contains or method, "needs_start", "")
    if lacking:
        problems.append((f"{place}.start", lacking))
    if len(problems) > before:
        problems.extend(_sizes(task, "task"))
        problems[before:] = once(problems[before:])
        return None
    task, test_task = _recorded(task), _recorded(test_task)
    published = plain["published"] if plain["published"] != Published() else None
    return Experiment(
        name=name,
        label=label,
        task=task,
        test_task=test_task,
        model=model,
        method=method,
        tune=ranges,
        start=start,
        run=plain["run"],
        evaluate=plain["evaluate"],
        budget=plain["budget"],
        published=published,
        contains=contains,
        found=found,
    )


def _overlays(
    item: dict[str, Any], comparison: bool, place: str, problems: list[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """What one method of a comparison lays over the file's sections; taken out of `item`."""
    if not comparison:
        return {key: {} for key in OVERLAYS}
    overlays = {key: item.pop(key, None) or {} for key in OVERLAYS}
    for key, value in overlays.items():
        if not isinstance(value, dict):
            problems.append((f"{place}.{key}", f"should be a mapping, not {value!r}"))
            overlays[key] = {}
    for key in sorted(map(str, set(overlays["evaluate"]) - set(OWN_TEST))):
        text = (
            f"cannot differ within a comparison, whose test is one for all; "
            f"{did_you_mean(key, OWN_TEST)}"
        )
        problems.append((f"{place}.evaluate.{key}", text))
    overlays["evaluate"] = {
        key: value for key, value in overlays["evaluate"].items() if key in OWN_TEST
    }
    return overlays


def _searches(
    item: dict[str, Any], place: str, problems: list[tuple[str, str]]
) -> tuple[Component | None, tuple[int, ...] | None]:
    """(the method that a shared search contains, the genotype that it has found); taken out of
    `item`.
    """
    default = getattr(
        TABLES["methods"].get(str(item.get("name", DEFAULT_METHOD))), "contains_by_default", None
    )
    if default is None:
        return None, None
    inside, found = item.pop("contains", None) or {}, item.pop("found", None)
    if not isinstance(inside, dict):
        problems.append((f"{place}.contains", f"should be a mapping, one method, not {inside!r}"))
        return None, None
    if found is not None and not (
        isinstance(found, list) and all(type(choice) is int for choice in found)
    ):
        problems.append(
            (f"{place}.found", f"should be a list of whole numbers, a genotype, not {found!r}")
        )
        found = None
    held = _tagged("methods", "name", inside, default, f"{place}.contains", problems)
    if held is not None and not held.can_be_contained:
        name = held.name  # type: ignore[attr-defined]
        text = (
            f"{name} has no model that a search could choose: use a method such as "
            f"maml or fine_tune"
        )
        problems.append((f"{place}.contains.name", text))
    return held, None if found is None else tuple(found)


def _recorded(task: Any) -> Any:
    """The task with the seed of a random class split written into it, where it has one."""
    return task.resolve(0) if hasattr(task, "resolve") else task


def _laid_over(base: dict[str, Any], over: dict[str, Any], tag: str) -> dict[str, Any]:
    """A section with an overlay, key by key; another component takes none of the base's other
    keys.
    """
    other = tag in over and over[tag] != base.get(tag, "glyphs" if tag == "source" else over[tag])
    return dict(over) if other else {**base, **over}


def _tagged(
    table: str,
    tag: str,
    values: dict[str, Any],
    default: str,
    place: str,
    problems: list[tuple[str, str]],
) -> Component | None:
    kinds = TABLES[table]
    name = values.get(tag, default)
    if not isinstance(name, str) or name not in kinds:
        problems.append(
            (
                f"{place}.{tag}",
                f"no {table[:-1]} is called {name!r}; {did_you_mean(str(name), kinds)}",
            )
        )
        return None
    return validated(kinds[name], {**values, tag: name}, place, problems)


def _tune(
    tune: Any, method: Any, budget: Any, place: str, problems: list[tuple[str, str]]
) -> dict[str, TuneRange]:
    if not isinstance(tune, dict):
        problems.append((f"{place}.tune", f"should be a mapping of fields to ranges, not {tune!r}"))
        return {}
    ranges: dict[str, TuneRange] = {}
    for key, values in tune.items():
        where = f"{place}.tune.{key}"
        if method is not None and str(key) not in type(method).model_fields:
            problems.append(
                (
                    where,
                    f"no such field of {method.name}; "
                    f"{did_you_mean(str(key), type(method).model_fields)}",
                )
            )
            continue
        span = validated(
            TuneRange, values if isinstance(values, dict) else {"values": values}, where, problems
        )
        if isinstance(span, TuneRange):
            ranges[str(key)] = span
            problems.extend(_out_of_range(method, str(key), span, where))
    if ranges and isinstance(budget, Budget) and budget.trials == 0:
        problems.append(
            (
                "budget.trials",
                f"is 0, but {place}.tune asks for tuning: give trials, or remove tune",
            )
        )
    return ranges


def _out_of_range(method: Any, key: str, span: TuneRange, where: str) -> list[tuple[str, str]]:
    """Both ends (or every value) of a range must be legal values of the field."""
    if method is None:
        return []
    found: list[tuple[str, str]] = []
    ends: tuple[Any, ...] = span.values if span.values is not None else (span.min, span.max)
    kinds = numbers_of(method, key)
    if span.values is None and not kinds:
        return [(where, f"{key} is no number: give a list of `values` instead of min and max")]
    if span.values is None and (kinds == {int} or span.distribution == "int_uniform"):
        if any(end != int(end) for end in ends):
            return [(where, f"min {span.min} and max {span.max} should be whole numbers")]
        ends = tuple(int(end) for end in ends)
    for value in ends:
        try:
            type(method).model_validate({**_dump(method), key: value})
        except ValidationError as error:
            found.append((where, f"{value!r} is no legal value: {error.errors()[0]['msg']}"))
    return found


def numbers_of(method: Any, key: str) -> set[type]:
    """Which of int and float a field of a method takes; {int}: whole numbers alone."""
    annotation = type(method).model_fields[key].annotation
    return {int, float} & set(get_args(annotation) or (annotation,))


def _dump(component: Any) -> dict[str, Any]:
    data: dict[str, Any] = component.model_dump(mode="json")
    return data


def _clean(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value not in (None, {}, "")}


def _sizes(task: Any, place: str) -> list[tuple[str, str]]:
    """What only building the source can tell (ways above the classes there are), told with the
    other errors.
    """
    try:
        if task is not None:
            task.build(split="train", seed=0)
    except ConfigError as error:
        return list(error.under(place).problems)
    return []


def once(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each problem once; one of the task section is not said again of the test task that inherits
    it.
    """
    own = {
        (place.removeprefix("task."), text) for place, text in problems if place.startswith("task.")
    }
    inherited = {(f"evaluate.task.{key}", text) for key, text in own}
    return [problem for problem in dict.fromkeys(problems) if problem not in inherited]
