"""Tasks that reach the target: how many, at what cost, and by which budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate import targets
from metalearn.evaluate.accounts import Axis
from metalearn.evaluate.targets import Reached, Share
from metalearn.results.costs import AXES, learning
from metalearn.results.records import Group, Json


class Solved(NamedTuple):
    """How many tasks a method solved, and at what price; None for what was not measured."""

    share: float
    per_solved: dict[str, float | None]  # axis -> all cost over tasks solved
    median: dict[str, float | None]  # axis -> cost by which half of the tasks are solved
    restricted: dict[str, float | None]  # axis -> mean cost up to the target or the cap
    cap: int  # steps
    within: dict[str, Share | None]  # axis -> share of tasks solved by each cost


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


def solved(group: Group, target: Json) -> Solved | None:
    """None where the scores are missing."""
    pooled = group.pooled(target["metric"])
    if pooled is None:
        return None
    first = targets.first_reached(pooled, target["value"], higher=target["metric"] == "accuracy")
    price: dict[str, float | None] = {}
    median: dict[str, float | None] = {}
    restricted: dict[str, float | None] = {}
    within: dict[str, Share | None] = {}
    for axis in AXES:
        found = reached(group, target, axis)
        within[axis] = shares = None if found is None else targets.kaplan_meier(found)
        price[axis] = None if found is None else targets.cost_per_solved(found)
        median[axis] = None if shares is None else targets.median_cost(shares)
        restricted[axis] = None if found is None else float(found.cost.mean())
    share = float((first < pooled.shape[-1]).mean())
    return Solved(share, price, median, restricted, group.first.steps[-1], within)


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
