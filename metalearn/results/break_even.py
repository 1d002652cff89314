"""After how many new tasks a dearer start is repaid: the `break_even` rows of comparison.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.breakeven import BreakEven, MethodCosts, at_common_levels, break_evens
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.targets import cost_per_solved
from metalearn.results.costs import AXES, up_front
from metalearn.results.records import Group, Json
from metalearn.results.solved import reached


class CostScope(NamedTuple):
    """What is in the costs of a break-even count."""

    with_tuning: bool = True  # before the first task
    with_answering: bool = False  # predicting the queries of each task once


SCOPES = (CostScope(), CostScope(with_tuning=False), CostScope(with_answering=True))


def costs_of(
    group: Group, target: Json | None, axis: Axis, scope: CostScope = SCOPES[0]
) -> MethodCosts:
    """The costs of one label at a target."""
    spent = [up_front(run, axis, tuning=scope.with_tuning) for run in group.runs]
    known = None if any(part is None for part in spent) else np.asarray(spent, np.float64)
    seeds = tuple(run.seed for run in group.runs)
    found = reached(group, target, axis, answers=scope.with_answering)
    return MethodCosts(group.label, seeds, known, found, origin(group))


def origin(group: Group) -> str:
    """The row whose trained network this one starts from; its own label where it has none."""
    return str((group.first.config.get("method") or {}).get("start") or group.label)


def break_even(groups: Sequence[Group], target: Json | None, levels: Sequence[float]) -> list[Json]:
    """The `break_even` rows of comparison.json: every pair at every level, in FLOPs and in seconds;
    empty without a target.
    """
    if target is None or len(groups) < 2:
        return []
    return [
        row
        for level in levels
        for axis in AXES
        for row in _at_level(groups, {**target, "value": level}, axis)
    ]


def _at_level(groups: Sequence[Group], target: Json, axis: Axis) -> list[Json]:
    """Every pair at one level, with its variants: without tuning, and with answering."""
    tables = [
        break_evens([costs_of(group, target, axis, scope) for group in groups]) for scope in SCOPES
    ]
    rows = []
    for main, *others in zip(*tables):
        variants = [
            {**scope._asdict(), "a": one.a, "b": one.b, "verdict": one.verdict}
            | {"tasks": one.tasks, "ci95": None if one.ci95 is None else list(one.ci95)}
            for scope, one in zip(SCOPES[1:], others)
        ]
        row = {**_row(axis, main), "level": target["value"], **SCOPES[0]._asdict()}
        rows.append({**row, "seeds": list(main.seeds), "variants": variants})
    return rows


def break_even_common(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """The same at the hardest `level` of the target's metric that both of a pair reach: null where
    there is none.
    """
    if target is None or len(groups) < 2:
        return []
    rows, levels = [], common_levels(groups, target)
    for axis in AXES:

        def at(level: float, axis: Axis = axis) -> list[MethodCosts]:
            return [costs_of(group, {**target, "value": level}, axis) for group in groups]

        found = at_common_levels(levels, at)
        rows += [{**_row(axis, one), "level": level} for level, one in found]
    return rows


def common_levels(groups: Sequence[Group], target: Json) -> list[float]:
    """From the target down in steps of 5 points to 5 above chance; of a loss upwards, a quarter
    more each time.
    """
    value = float(target["value"])
    if target["metric"] != "accuracy":
        return [value * 1.25**step for step in range(16)]
    ways = (groups[0].first.result.get("task") or {}).get("ways")
    least = min(value, (1 / int(ways) if ways else 0.0) + 0.05)
    rounded = [number / 20 for number in range(20, 0, -1)]
    return [value, *(level for level in rounded if least <= level < value)]


def _row(axis: Axis, found: BreakEven) -> Json:
    return {
        "a": found.a,
        "b": found.b,
        "axis": axis,
        "verdict": found.verdict,
        "tasks": found.tasks,
        "ci95": None if found.ci95 is None else list(found.ci95),
        "leave_one_out": [{"seed": seed, "tasks": tasks} for seed, tasks in found.leave_one_out],
        "why": found.why,
    }


def break_even_lines(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """FLOPs up front and of one solved task, of every label that solved a task and whose FLOPs were
    counted.
    """
    return [line for group in groups if (line := _line(group, target)) is not None]


def _line(group: Group, target: Json | None) -> Json | None:
    found = costs_of(group, target, "flops")
    each = None if found.found is None else cost_per_solved(found.found)
    if found.up_front is None or found.found is None or not each:
        return None
    up, share = float(found.up_front.mean()), float(found.found.solved.mean())
    return {"label": group.label, "up_front": up, "per_solved": each, "share": share}
