"""What finished runs cost: from groups of result.json to accounts, curves over cost, and
break-even.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate import accounts, pareto, stats, targets
from metalearn.evaluate.accounts import Axis
from metalearn.evaluate.breakeven import Account, BreakEven, at_common_levels, break_evens
from metalearn.evaluate.ledger import PHASES, MissingPhase
from metalearn.evaluate.targets import Reached, Share
from metalearn.results.records import Array, Group, Json, Run, curve, mean

AXES: tuple[Axis, ...] = ("flops", "seconds")
SEED = 0  # of every bootstrap


class Line(NamedTuple):
    """A metric against what one new task takes: learning it up to a point, and answering its
    queries once.
    """

    cost: Array  # [P]
    mean: Array  # [P]
    low: Array  # [P]
    high: Array  # [P]


class Solved(NamedTuple):
    """How many tasks a method solved, and at what price; None for what was not measured."""

    share: float
    per_solved: dict[str, float | None]  # axis -> all cost over tasks solved
    median: dict[str, float | None]  # axis -> cost by which half of the tasks are solved
    restricted: dict[str, float | None]  # axis -> mean cost up to the target or the cap
    cap: int  # steps


def learning(run: Run, axis: Axis) -> Array | None:
    """Cost of learning one new task up to each point [P]; None where it was not measured."""
    try:
        return accounts.learning(run.cost, axis, run.steps)
    except MissingPhase:
        return None


def up_front(run: Run, axis: Axis) -> float | None:
    """Cost before any new task; None where it was not measured."""
    try:
        return accounts.up_front(run.cost, axis)
    except MissingPhase:
        return None


def answering(run: Run, axis: Axis) -> float | None:
    try:
        return accounts.answering(run.cost, axis)
    except MissingPhase:
        return None


def line(group: Group, axis: Axis) -> Line | None:
    """Mean over seeds and tasks against mean cost, with a 95 % bootstrap band; a method without
    steps is one point.
    """
    pooled = group.pooled(group.metric)
    spent = [learning(run, axis) for run in group.runs]
    asked = mean([answering(run, axis) for run in group.runs])
    if pooled is None or asked is None or not spent or any(part is None for part in spent):
        return None
    cost = np.mean([part for part in spent if part is not None], 0) + asked
    shown = curve(group)  # of a loss over the tasks that did not diverge, where some did
    low, high = (
        (np.full(len(cost), np.nan),) * 2 if shown.converged_only else stats.band(pooled, SEED)
    )
    middle = np.asarray([np.nan if value is None else value for value in shown.mean])
    places = (
        [place for place in range(len(cost)) if cost[place] > 0]
        if group.uses_steps
        else [len(cost) - 1]
    )
    return Line(cost[places], middle[places], low[places], high[places])


def reached(group: Group, target: Json | None, axis: Axis) -> Reached | None:
    """Which tasks of which seed reached the target at what cost: [S, E]; None where scores or costs
    are missing.
    """
    if target is None:
        return None
    pooled, found = group.pooled(target["metric"]), []
    for place, run in enumerate(group.runs):
        spent = learning(run, axis)
        if spent is None or pooled is None:
            return None
        up = target["metric"] == "accuracy"
        found.append(targets.reach(pooled[place], spent, target["value"], higher=up))
    return Reached(np.stack([one.solved for one in found]), np.stack([one.cost for one in found]))


def share_curve(group: Group, target: Json | None, axis: Axis) -> Share | None:
    found = reached(group, target, axis)
    return None if found is None else targets.kaplan_meier(found)


def solved(group: Group, target: Json | None) -> Solved | None:
    """None where the scores are missing."""
    pooled = None if target is None else group.pooled(target["metric"])
    if pooled is None or target is None:
        return None
    first = targets.first_reached(pooled, target["value"], higher=target["metric"] == "accuracy")
    price: dict[str, float | None] = {}
    median: dict[str, float | None] = {}
    restricted: dict[str, float | None] = {}
    for axis in AXES:
        found = reached(group, target, axis)
        curve = None if found is None else targets.kaplan_meier(found)
        price[axis] = None if found is None else targets.cost_per_solved(found)
        median[axis] = None if curve is None else targets.median_cost(curve)
        restricted[axis] = None if curve is None or found is None else float(found.cost.mean())
    return Solved(
        float((first < pooled.shape[-1]).mean()), price, median, restricted, group.first.steps[-1]
    )


def account(group: Group, target: Json | None, axis: Axis) -> Account:
    spent = [up_front(run, axis) for run in group.runs]
    known = None if any(part is None for part in spent) else np.asarray(spent, np.float64)
    return Account(
        group.label, tuple(run.seed for run in group.runs), known, reached(group, target, axis)
    )


def break_even(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """The `break_even` rows of comparison.json: every pair, in FLOPs and in seconds; empty without
    a target.
    """
    if target is None or len(groups) < 2:
        return []
    rows = []
    for axis in AXES:
        rows += [
            _row(axis, one)
            for one in break_evens([account(group, target, axis) for group in groups], SEED)
        ]
    return rows


def break_even_common(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """The same at the hardest `level` of the target's metric that both of a pair reach: null where
    there is none.
    """
    if target is None or len(groups) < 2:
        return []
    rows, levels = [], levels_of(groups, target)
    for axis in AXES:

        def at(level: float, axis: Axis = axis) -> list[Account]:
            return [account(group, {**target, "value": level}, axis) for group in groups]

        rows += [
            {**_row(axis, one), "level": level} for level, one in at_common_levels(levels, at, SEED)
        ]
    return rows


def levels_of(groups: Sequence[Group], target: Json) -> list[float]:
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


def total(group: Group, axis: Axis, tasks: int) -> float | None:
    """Everything beforehand and learning so many new tasks up to the headline step, mean over
    seeds.
    """
    found = []
    for run in group.runs:
        before, each = up_front(run, axis), learning(run, axis)
        if before is None or each is None:
            return None
        found.append(before + tasks * float(each[run.headline_point]))
    return mean(found)


def on_front(groups: Sequence[Group], axis: Axis, tasks: int) -> list[bool]:
    costs = [total(group, axis, tasks) for group in groups]
    return pareto.front(costs, [group.value() for group in groups], higher=groups[0].higher_better)


def missing_phases(run: Run) -> list[str]:
    """Phases that the cost block lacks, or whose seconds or FLOPs were not measured."""
    found = []
    for phase in PHASES:
        entry = run.cost.get(phase)
        if entry is None:
            found.append(phase)
        else:
            found += [
                f"{phase}.{name}"
                for name in ("seconds", "flops")
                if _unmeasured(phase, name, entry)
            ]
    return found


def _unmeasured(phase: str, name: str, entry: Json) -> bool:
    return entry.get(name) is None and not (
        phase == "setup" and name == "flops"
    )  # imports have no FLOPs to count


def whole_seconds(run: Run) -> float | None:
    try:
        return accounts.whole_seconds(run.cost)
    except MissingPhase:
        return None
