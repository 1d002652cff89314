"""Other tasks: other shots and ways, and tasks from a source that was not used in training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from metalearn.errors import ConfigError
from metalearn.report.sections import Section
from metalearn.results.design.tuning import tuned_fields
from metalearn.results.records import Group, Json, Run
from metalearn.storage.files import read_json
from metalearn.storage.schema import Result, check_schema

# Options that are the setting itself, or do not affect what a method learns.
_IGNORED = (
    r"(evaluate\.)?task\.(ways|shots|queries)",
    r"experiment|method\.(label|tune\..*)|published\..*",
    r"run\.(seeds|threads|workers|executor|chunk|engine|keep_last|log_every|checkpoint_every)",
    r"run\.track\..*|run\.device|evaluate\.chunk",
)


class SourceScore(NamedTuple):
    """One score on tasks of a source."""

    group: Group
    seed: int
    train_source: str
    test_source: str
    value: float | None
    ci95: float | None


def scores_across_sources(groups: Sequence[Group]) -> list[SourceScore]:
    """Return the scores of rows tested on a source that they were not trained on.

    Those on its own source come first."""
    scores = []
    for group in groups:
        for run in group.runs:
            rows = []
            for result in (run.result, *evaluations(run)):
                head, source = result["headline"], str((result.get("task") or {}).get("source"))
                if head.get("metric") == group.metric:
                    score = head.get("value"), head.get("ci95")
                    rows.append(SourceScore(group, run.seed, train_source(run), source, *score))
            is_shifted = any(one.test_source != one.train_source for one in rows)
            if is_shifted and run.traits.get("consumes") != "nothing":
                scores += sorted(rows, key=lambda one: one.test_source != one.train_source)
    return scores


def train_source(run: Run) -> str:
    task: Any = run.config.get("task") or {}
    return str(task.get("source") or run.task.get("source"))


def evaluations(run: Run) -> list[Json]:
    """Return results of `metalearn evaluate` next to a run, in order; other files are ignored."""
    results = []
    files = [path for path in (run.path / "evaluations").glob("*.json") if path.stem.isdigit()]
    for path in sorted(files, key=lambda path: int(path.stem)):
        try:
            result = check_schema(Result, read_json(path), path)
        except ConfigError:
            continue
        results.append(result)
    return results


def settings(sections: Sequence[Section]) -> list[Json]:
    """Return ranking and margin of the best by setting; empty with fewer than two of one source.

    `ci95` is the interval of the margin, None if it is not known. `differences` are those of the
    configurations from the first setting of the source, apart from ways, shots and queries."""
    rows: list[tuple[str, Json]] = []
    shapes: dict[str, set[tuple[Any, Any]]] = {}
    firsts: dict[str, Section] = {}
    for section in sections:
        ranking, task = section.ranking, section.groups[0].first.task
        if len(ranking) < 2:
            continue
        source = str(task.get("source"))
        shapes.setdefault(source, set()).add((task.get("ways"), task.get("shots")))
        first = firsts.setdefault(source, section)
        row = {
            "title": section.title,
            "ranking": [group.label for group, _ in ranking],
            **_margin(section),
            "differences": [] if first is section else _differences(first, section),
        }
        rows.append((source, row))
    return [row for source, row in rows if len(shapes[source]) > 1]


def _margin(section: Section) -> Json:
    """Return by how much the best method is better than the second, and the interval of that."""
    (best, best_line), (second, second_line) = section.ranking[:2]
    scale = 100 if section.up else 1
    margin = scale * abs(best_line["value"] - second_line["value"])
    names = {best.label, second.label}
    pair = next((one for one in section.results["paired"] if {one["a"], one["b"]} == names), None)
    if pair is None or pair["ci95"] is None:
        return {"margin": margin, "ci95": None}
    low, high = (scale * end for end in pair["ci95"])
    is_forward = (pair["a"] == best.label) == section.up
    return {"margin": margin, "ci95": [low, high] if is_forward else [-high, -low]}


def _differences(first: Section, other: Section) -> list[str]:
    """Return `option value instead of value (labels)` of the methods that both have."""
    groups = {group.label: group for group in first.groups}
    common = [group for group in other.groups if group.label in groups]
    labels_by_text: dict[str, list[str]] = {}
    for group in common:
        before, after = _options(groups[group.label].first), _options(group.first)
        for name in dict.fromkeys((*before, *after)):
            old, new = before.get(name), after.get(name)
            if old != new:
                text = f"{name} {_shown(new)} instead of {_shown(old)}"
                labels_by_text.setdefault(text, []).append(group.label)
    return [
        f"{text} ({'all' if len(labels) == len(common) > 1 else ', '.join(labels)})"
        for text, labels in labels_by_text.items()
    ]


def _options(run: Run) -> Json:
    """Return the options of a run that affect its result and were not tuned, by dotted name."""
    tuned = {f"method.{name}" for name in tuned_fields(run)}
    if (run.result.get("tuned") or {}).get("headline_step") is not None:
        tuned.add("evaluate.headline_step")
    return {
        name: value
        for name, value in _flat(run.config).items()
        if name not in tuned and not any(re.fullmatch(pattern, name) for pattern in _IGNORED)
    }


def _flat(section: Json, prefix: str = "") -> Json:
    options: Json = {}
    for name, value in section.items():
        inner = value if isinstance(value, dict) and value else None
        options |= _flat(inner, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return options


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
