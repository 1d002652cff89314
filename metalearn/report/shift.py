"""Other tasks: other shots and ways, and tasks from a source that was not used in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from metalearn.errors import ConfigError
from metalearn.report.sections import Section
from metalearn.results.records import Group, Json, Run
from metalearn.storage.files import read_json
from metalearn.storage.schema import Result, check_schema


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
    """Return ranking and margin of the best by setting; empty with fewer than two of one source."""
    rows: list[tuple[str, Json]] = []
    shapes: dict[str, set[tuple[Any, Any]]] = {}
    for section in sections:
        ranking, task = section.ranking, section.groups[0].first.task
        if len(ranking) < 2:
            continue
        source = str(task.get("source"))
        shapes.setdefault(source, set()).add((task.get("ways"), task.get("shots")))
        best, second = (line["value"] for _, line in ranking[:2])
        row = {
            "title": section.title,
            "ranking": [group.label for group, _ in ranking],
            "margin": abs(best - second) * (100 if section.up else 1),
        }
        rows.append((source, row))
    return [row for source, row in rows if len(shapes[source]) > 1]
