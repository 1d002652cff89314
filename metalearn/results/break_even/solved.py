"""Tasks that reach the target: how many, at what cost, and by which budget.

A task is judged, and its cost taken, at the step that validation tasks chose for its method. That
is never step 0 for a method that has not seen the support set there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from metalearn.evaluate import targets
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.targets import Reached, Share
from metalearn.results.costs import AXES, answering, learning
from metalearn.results.records import Group, Json, Run

# At the step that validation tasks chose; at the last step; or, as if one knew when to stop, at the
# first from which on the task stays solved.
Stop = Literal["chosen", "last", "solved"]


class Solved(NamedTuple):
    """How many tasks a method solved, and at what cost; None for a cost that was not measured."""

    share: float
    per_solved: dict[str, float | None]  # axis -> all cost over tasks solved
    median: dict[str, float | None]  # axis -> cost by which half of the tasks are solved
    restricted: dict[str, float | None]  # axis -> mean cost up to the target or the cap
    cap: int  # steps
    within: dict[str, Share | None]  # axis -> share of tasks solved by each cost


def point_of(run: Run) -> int:
    """The point of the curve at which a run's tasks are judged."""
    return targets.admissible_point(
        run.steps, run.headline_point, starts_at_chance=starts_at_chance(run)
    )


def starts_at_chance(run: Run) -> bool:
    """Whether predictions at step 0 have not seen the support set."""
    traits = run.traits
    return bool(traits.get("uses_steps", True)) and not traits.get("support_at_step_0", False)


def reached(
    group: Group,
    target: Json | None,
    axis: Axis,
    *,
    answers: bool = False,
    queries: int | None = None,
    stop: Stop = "chosen",
    last: int | None = None,
) -> Reached | None:
    """Which tasks of which seed reached the target where they were stopped, and their cost: [S, E].

    None where scores or costs are missing. `answers`: the cost of predicting a task's queries once
    is in it. `last`: the point at which curves end, under `stop` "solved"."""
    if target is None:
        return None
    if stop == "solved":
        return when_reached(group, target, axis, last=last)
    pooled, found = group.pooled(target["metric"]), []
    for place, run in enumerate(group.runs):
        spent, more = learning(run, axis), answering(run, axis, queries) if answers else 0.0
        if spent is None or more is None or pooled is None:
            return None
        point = point_of(run) if stop == "chosen" else len(run.steps) - 1
        up = target["metric"] == "accuracy"
        scores = pooled[place][:, point]
        found.append(
            targets.at_step(scores, float(spent[point]) + more, target["value"], higher=up)
        )
    return Reached(np.stack([one.solved for one in found]), np.stack([one.cost for one in found]))


def when_reached(
    group: Group, target: Json, axis: Axis, *, last: int | None = None
) -> Reached | None:
    """The same, each task up to the first point from which on it stays at the target.

    This is the curve of a reader who knows when to stop. Curves end at the point `last`, by default
    their last."""
    end = None if last is None else last + 1
    pooled, found = group.pooled(target["metric"]), []
    for place, run in enumerate(group.runs):
        spent = learning(run, axis)
        if spent is None or pooled is None:
            return None
        first = targets.admissible_point(run.steps, 0, starts_at_chance=starts_at_chance(run))
        up = target["metric"] == "accuracy"
        scores, costs = pooled[place][:, :end], spent[:end]
        found.append(targets.reach(scores, costs, target["value"], higher=up, first=first))
    return Reached(np.stack([one.solved for one in found]), np.stack([one.cost for one in found]))


def solved(group: Group, target: Json) -> Solved | None:
    """None where the scores are missing."""
    pooled = group.pooled(target["metric"])
    if pooled is None:
        return None
    up = target["metric"] == "accuracy"
    points = [point_of(run) for run in group.runs]
    judged = np.stack([scores[:, point] for scores, point in zip(pooled, points)])
    per_solved: dict[str, float | None] = {}
    median: dict[str, float | None] = {}
    restricted: dict[str, float | None] = {}
    within: dict[str, Share | None] = {}
    for axis in AXES:
        found, when = reached(group, target, axis), when_reached(group, target, axis)
        within[axis] = shares = None if when is None else targets.kaplan_meier(when)
        per_solved[axis] = None if found is None else targets.cost_per_solved(found)
        median[axis] = None if shares is None else targets.median_cost(shares)
        restricted[axis] = None if when is None else float(when.cost.mean())
    share = float(targets.reaches(judged, target["value"], higher=up).mean())
    return Solved(share, per_solved, median, restricted, group.first.steps[-1], within)


def solved_rows(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """The `solved` rows of comparison.json, one a label with scores; empty without a target."""
    if target is None:
        return []
    found = [(group.label, solved(group, target)) for group in groups]
    return [{"label": label, **_row(one)} for label, one in found if one is not None]


def _row(one: Solved) -> Json:
    within = {axis: None if part is None else _lists(part) for axis, part in one.within.items()}
    return {**one._asdict(), "within": within}


def _lists(share: Share) -> Json:
    return {"cost": share.cost.tolist(), "share": share.share.tolist()}
