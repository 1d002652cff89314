"""Mean learning curves with intervals: a metric against steps, and against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from metalearn.evaluate import stats
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.random_effects import interval
from metalearn.results.costs import AXES, answering, learning
from metalearn.results.records import Array, Group, Json, at, mean


@dataclass(frozen=True)
class Curve:
    """A mean curve over seeds with its interval over tasks, and each seed's own line."""

    steps: list[int]
    mean: list[float | None]
    ci95: list[float | None]
    seeds: list[list[float | None]] = field(default_factory=list)
    converged_only: bool = False


class CostCurve(NamedTuple):
    """A metric against the cost of one new task: learning up to a point and one prediction."""

    cost: Array  # [P]
    mean: Array  # [P]
    low: Array  # [P]
    high: Array  # [P]


def curve(group: Group) -> Curve:
    """The headline metric against steps.

    A loss is averaged over the tasks that did not diverge where some did and the run wrote that
    mean: a bare mean that one exploding task decides says nothing. The share that diverged stands
    in the tables."""
    shares = [share or 0.0 for run in group.runs for share in run.test.get("diverged") or []]
    converged = (
        group.metric == "loss"
        and any(shares)
        and all("loss_converged" in run.test for run in group.runs)
    )
    name = "loss_converged" if converged else group.metric
    steps = group.first.steps
    same = [run for run in group.runs if run.steps == steps]
    lines = [[at(run.test.get(name), place) for place in range(len(steps))] for run in same]
    averaged = [mean([line[place] for line in lines]) for place in range(len(steps))]
    pooled = None if converged else group.pooled(group.metric)
    if pooled is not None:
        widths: list[float | None] = [stats.number(width) for width in stats.ci95(pooled.mean(0))]
    else:
        own = [run.test.get(f"{name}_ci95") for run in same]
        widths = [mean([at(values, place) for values in own]) for place in range(len(steps))]
    return Curve(steps, averaged, widths, lines if len(lines) > 1 else [], converged)


def cost_curve(group: Group, axis: Axis) -> CostCurve | None:
    """Mean over seeds and tasks, with its 95 % interval, against mean cost.

    A method without steps is one point. None where scores or costs are missing."""
    pooled = group.pooled(group.metric)
    spent = [learning(run, axis) for run in group.runs]
    asked = mean([answering(run, axis) for run in group.runs])
    if pooled is None or asked is None or not spent or any(part is None for part in spent):
        return None
    cost = np.mean([part for part in spent if part is not None], 0) + asked
    shown = curve(group)  # of a loss over the tasks that did not diverge, where some did
    low, high = (np.full(len(cost), np.nan),) * 2 if shown.converged_only else interval(pooled)
    middle = np.asarray([np.nan if value is None else value for value in shown.mean])
    places = [len(cost) - 1]
    if group.uses_steps:
        places = [place for place in range(len(cost)) if cost[place] > 0]
    return CostCurve(cost[places], middle[places], low[places], high[places])


def curves(groups: Sequence[Group]) -> list[Json]:
    """The `curves` of comparison.json: one entry a label."""
    return [{"label": group.label, **vars(curve(group))} for group in groups]


def cost_curves(groups: Sequence[Group]) -> list[Json]:
    """The `cost_curves` of comparison.json: one entry a label and axis, if both are known."""
    rows = []
    for axis in AXES:
        for group in groups:
            found = cost_curve(group, axis)
            if found is not None:
                parts = {name: values.tolist() for name, values in found._asdict().items()}
                rows.append({"label": group.label, "axis": axis, **parts})
    return rows
