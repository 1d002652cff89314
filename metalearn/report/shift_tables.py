"""What a report says of other tasks: other shots and ways, and tasks from a source that was not
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from metalearn.errors import ConfigError
from metalearn.report.html import left, row, table
from metalearn.report.tables import method_name, with_ci
from metalearn.results.records import Group, Json, Run
from metalearn.storage.files import read_json
from metalearn.storage.schema import Result, checked


class Across(NamedTuple):
    """One score on tasks of a source."""

    group: Group
    seed: int
    trained: str
    tested: str
    value: float | None
    ci95: float | None


def across(groups: Sequence[Group]) -> list[Across]:
    """Rows tested on a source that they were not trained on, each behind what is known of it on its
    own source.
    """
    found = []
    for group in groups:
        for run in group.runs:
            scores = [
                (run.result, run.result["headline"]),
                *((one, one["headline"]) for one in evaluations(run)),
            ]
            rows = [
                Across(
                    group,
                    run.seed,
                    trained_on(run),
                    str((result.get("task") or {}).get("source")),
                    head.get("value"),
                    head.get("ci95"),
                )
                for result, head in scores
                if head.get("metric") == group.metric
            ]
            if (
                any(one.tested != one.trained for one in rows)
                and run.traits.get("consumes") != "nothing"
            ):
                found += sorted(rows, key=lambda one: one.tested != one.trained)
    return found


def trained_on(run: Run) -> str:
    task: Any = run.config.get("task") or {}
    return str(task.get("source") or (run.result.get("task") or {}).get("source"))


def evaluations(run: Run) -> list[Json]:
    """What `metalearn evaluate` wrote beside a run, in order; files that are no result are left
    alone.
    """
    found = []
    numbered = [path for path in (run.path / "evaluations").glob("*.json") if path.stem.isdigit()]
    for path in sorted(numbered, key=lambda path: int(path.stem)):
        try:
            result = checked(Result, read_json(path), path)
        except ConfigError:
            continue
        found.append(result)
    return found


def across_table(groups: Sequence[Group], found: Sequence[Across]) -> str:
    up = groups[0].higher_better
    heads = ["method", "seed", "trained on", "tested on", "accuracy, %" if up else "squared error"]
    rows = []
    for one in found:
        tested = escape(one.tested) + (
            " <strong>another source</strong>" if one.tested != one.trained else ""
        )
        cells = [
            left(str(one.seed)),
            left(escape(one.trained)),
            left(tested),
            with_ci(one.value, one.ci95, up),
        ]
        rows.append(row(method_name(one.group, groups), cells))
    return table(heads, rows, left=(1, 2, 3))


def settings(sections: Sequence[tuple[str, Sequence[Group]]]) -> str:
    """The winner and its margin in every setting of a page; empty with fewer than two that share a
    source.
    """
    rows: list[tuple[str, str]] = []  # source, HTML
    shapes: dict[str, set[tuple[Any, Any]]] = {}
    for title, groups in sections:
        known = [group for group in groups if group.value() is not None]
        task = groups[0].first.result.get("task") or {}
        if len(known) < 2:
            continue
        source = str(task.get("source"))
        shapes.setdefault(source, set()).add((task.get("ways"), task.get("shots")))
        best, second = known[0], known[1]
        up = best.higher_better
        margin = abs((best.value() or 0.0) - (second.value() or 0.0)) * (100 if up else 1)
        order = ", ".join(group.label for group in known)
        names = [left(escape(group.label)) for group in (best, second)]
        cells = [names[0], f"{margin:.3g}", names[1], f'<td class="wrap">{escape(order)}</td>']
        rows.append((source, row(escape(title), cells)))
    kept = [shown for source, shown in rows if len(shapes[source]) > 1]
    unit = "margin<small>points, or squared error</small>"
    heads = ["tasks", "best", unit, "second", "ranking<small>best first</small>"]
    return table(heads, kept, left=(1, 3, 4)) if kept else ""
