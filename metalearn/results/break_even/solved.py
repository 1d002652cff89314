"""Tasks that reach the target: how many, at what cost, and by which budget.

A task is scored, and its cost taken, at the step that validation tasks chose for its method. That
is never step 0 for a method that does not use the support set there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from metalearn.evaluate import targets
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.random_effects import LEAST_SEEDS
from metalearn.evaluate.targets import Reached, Share
from metalearn.results.costs import AXES, learning_cost, prediction_cost
from metalearn.results.records import Array, Group, Json, Run

# At the step that validation tasks chose; at the last step; or, with an ideal stopping rule, at the
# first from which on the task stays solved.
Stop = Literal["chosen", "last", "solved"]


class SolvedTasks(NamedTuple):
    """How many tasks a method solved, and at what cost; None for a cost that was not measured."""

    share: float
    per_solved: dict[str, float | None]  # axis -> all cost over tasks solved
    median: dict[str, float | None]  # axis -> cost by which half of the tasks are solved
    restricted: dict[str, float | None]  # axis -> mean cost up to the target or the cap
    cap: int  # steps
    within: dict[str, Share | None]  # axis -> fraction of tasks solved by each cost
    shares: list[Json]  # of the target and each level of the file: level, share, ci95


def point_of(run: Run) -> int:
    """Return the point of the curve at which a run's tasks are scored."""
    return targets.admissible_point(
        run.steps, run.headline_point, starts_at_chance=starts_at_chance(run)
    )


def starts_at_chance(run: Run) -> bool:
    """Return whether predictions at step 0 do not use the support set."""
    traits = run.traits
    return bool(traits.get("uses_steps", True)) and not traits.get("support_at_step_0", False)


def stopped_outcomes(
    group: Group,
    target: Json | None,
    axis: Axis,
    *,
    answers: bool = False,
    queries: int | None = None,
    stop: Stop = "chosen",
    last: int | None = None,
) -> Reached | None:
    """Return whether each task reached the target at its stopping step, and its cost: [S, E].

    None without scores or costs. `answers`: the cost includes predicting a task's queries once.
    `last`: the point at which curves end, under `stop` "solved"."""
    if target is None:
        return None
    if stop == "solved":
        return earliest_outcomes(group, target, axis, last=last)
    table, outcomes = group.pooled_scores(target["metric"]), []
    for place, run in enumerate(group.runs):
        learn_cost, predict_cost = (
            learning_cost(run, axis),
            prediction_cost(run, axis, queries) if answers else 0.0,
        )
        if learn_cost is None or predict_cost is None or table is None:
            return None
        point = point_of(run) if stop == "chosen" else len(run.steps) - 1
        up = target["metric"] == "accuracy"
        scores = table[place][:, point]
        outcomes.append(
            targets.at_step(
                scores, float(learn_cost[point]) + predict_cost, target["value"], higher=up
            )
        )
    return Reached(
        np.stack([one.solved for one in outcomes]), np.stack([one.cost for one in outcomes])
    )


def earliest_outcomes(
    group: Group, target: Json, axis: Axis, *, last: int | None = None
) -> Reached | None:
    """Return the same at the first point from which on a task stays at the target.

    This is what an ideal stopping rule would reach. Curves end at the point `last`, by default
    their last."""
    end = None if last is None else last + 1
    table, outcomes = group.pooled_scores(target["metric"]), []
    for place, run in enumerate(group.runs):
        learn_cost = learning_cost(run, axis)
        if learn_cost is None or table is None:
            return None
        first = targets.admissible_point(run.steps, 0, starts_at_chance=starts_at_chance(run))
        up = target["metric"] == "accuracy"
        scores, costs = table[place][:, :end], learn_cost[:end]
        outcomes.append(targets.reach(scores, costs, target["value"], higher=up, first=first))
    return Reached(
        np.stack([one.solved for one in outcomes]), np.stack([one.cost for one in outcomes])
    )


def solve_statistics(
    group: Group, target: Json, levels: Sequence[float] = ()
) -> SolvedTasks | None:
    """Return the statistics of solved tasks of one label, or None without scores."""
    table = group.pooled_scores(target["metric"])
    if table is None:
        return None
    up = target["metric"] == "accuracy"
    points = [point_of(run) for run in group.runs]
    step_scores = np.stack([scores[:, point] for scores, point in zip(table, points)])
    per_solved: dict[str, float | None] = {}
    median: dict[str, float | None] = {}
    restricted: dict[str, float | None] = {}
    within: dict[str, Share | None] = {}
    for axis in AXES:
        outcomes, earliest = (
            stopped_outcomes(group, target, axis),
            earliest_outcomes(group, target, axis),
        )
        within[axis] = curve = None if earliest is None else targets.share_by_cost(earliest)
        per_solved[axis] = None if outcomes is None else targets.cost_per_solved(outcomes)
        median[axis] = None if curve is None else targets.median_cost(curve)
        restricted[axis] = None if earliest is None else float(earliest.cost.mean())
    shares = [
        _share_at(step_scores, level, higher=up) for level in sorted({target["value"], *levels})
    ]
    share = float(targets.reaches(step_scores, target["value"], higher=up).mean())
    last = group.first.steps[-1]
    return SolvedTasks(share, per_solved, median, restricted, last, within, shares)


def _share_at(scores: Array, level: float, *, higher: bool) -> Json:
    """Return the fraction of tasks [S, E] at a level with its interval.

    With fewer than LEAST_SEEDS seeds it is over tasks, and only that of one seed is known."""
    solved = targets.reaches(scores, level, higher=higher)
    share, low, high = targets.share_interval(solved) if solved.size > 1 else (solved.mean(), 0, 1)
    known = solved.shape[1] > 1 and (len(solved) == 1 or len(solved) >= LEAST_SEEDS)
    return {"level": level, "share": float(share), "ci95": [low, high] if known else None}


def solved_rows(
    groups: Sequence[Group], target: Json | None, levels: Sequence[float] = ()
) -> list[Json]:
    """Return the `solved` rows of comparison.json, one per label with scores.

    Empty without a target."""
    if target is None:
        return []
    by_label = [(group.label, solve_statistics(group, target, levels)) for group in groups]
    return [
        {"label": label, **_row(statistics)}
        for label, statistics in by_label
        if statistics is not None
    ]


def _row(one: SolvedTasks) -> Json:
    within = {axis: None if part is None else _lists(part) for axis, part in one.within.items()}
    return {**one._asdict(), "within": within}


def _lists(share: Share) -> Json:
    return {"cost": share.cost.tolist(), "share": share.share.tolist()}
