"""Every point of the curves as tables, mean and seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.report.figures.axes import by_label
from metalearn.report.numbers import score, with_ci
from metalearn.results.records import Group, Json, Run, at, mean


class PointRow(NamedTuple):
    """One line: that of a seed, the `mean`, or `published`."""

    label: str
    seed: int | str
    cells: list[str]


class Points(NamedTuple):
    """One table."""

    title: str
    is_open: bool
    heads: list[str]
    rows: list[PointRow]


def curve_points(groups: Sequence[Group], results: Json) -> list[Points]:
    """Return tables of the metric and of related values, of those that a run recorded."""
    up = groups[0].higher_better
    curves = by_label(results, "curves")
    has_converged = any(curve["converged_only"] for curve in curves.values())
    if up:
        kinds = [("accuracy", "Accuracy, %", True, True), ("loss", "Cross-entropy", False, False)]
    else:
        kinds = [
            ("loss", "Squared error, all tasks", False, True),
            ("loss_median", "Squared error, median task", False, False),
            ("loss_converged", "Squared error, tasks that did not diverge", False, has_converged),
        ]
    tables = [
        Points(title + _half(groups, name), is_open, *_table(groups, curves, name, percent))
        for name, title, percent, is_open in kinds
        if any(name in run.test for group in groups for run in group.runs)
    ]
    if any(group.first.test.get("diverged") for group in groups):
        title = "Tasks that diverged, %"
        tables.append(Points(title, False, *_table(groups, curves, "diverged", True)))
    return tables


def _half(groups: Sequence[Group], name: str) -> str:
    """Return what follows ± in a table of `name`; empty if no run has recorded it."""
    is_known = any(run.test.get(f"{name}_ci95") for group in groups for run in group.runs)
    return ", ± 95 % over tasks" if is_known else ""


def _table(
    groups: Sequence[Group], curves: dict[str, Json], name: str, percent: bool
) -> tuple[list[str], list[PointRow]]:
    steps = sorted({step for group in groups for run in group.runs for step in run.steps})
    rows: list[PointRow] = []
    for group in groups:
        if len(group.runs) > 1:
            curve = curves.get(group.label) if name == group.metric else None
            rows.append(PointRow(group.label, "mean", _mean(group, curve, name, steps, percent)))
        rows += [
            PointRow(group.label, run.seed, _seed(run, name, steps, percent)) for run in group.runs
        ]
        published_curve = group.first.result["headline"].get("published_curve") or {}
        values = {int(step): value for step, value in published_curve.items() if value is not None}
        if values and name == group.metric:
            cells = [score(values.get(step), percent) for step in steps]
            rows.append(PointRow(group.label, "published", cells))
    return [f"step {step}" for step in steps], rows


def _mean(
    group: Group, curve: Json | None, name: str, steps: Sequence[int], percent: bool
) -> list[str]:
    widths: dict[int, float | None] = {}
    if curve is not None and not curve["converged_only"]:
        widths = dict(zip(curve["steps"], curve["ci95"]))
    values = [mean([_value(run, name, step) for run in group.runs]) for step in steps]
    return [with_ci(value, widths.get(step), percent) for step, value in zip(steps, values)]


def _seed(run: Run, name: str, steps: Sequence[int], percent: bool) -> list[str]:
    return [
        with_ci(_value(run, name, step), _value(run, f"{name}_ci95", step), percent)
        if step in run.steps
        else ""
        for step in steps
    ]


def _value(run: Run, name: str, step: int) -> float | None:
    return at(run.test.get(name), run.steps.index(step)) if step in run.steps else None
