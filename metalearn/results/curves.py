"""Mean learning curves with intervals: a metric against steps, and against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from metalearn.evaluate import stats
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.random_effects import interval
from metalearn.results.costs import AXES, learning_cost, prediction_cost
from metalearn.results.records import Array, Group, Json, at, mean


@dataclass(frozen=True)
class MeanCurve:
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


def mean_curve(group: Group) -> MeanCurve:
    """Return the headline metric against steps.

    If some tasks diverged, and the run has that mean, a loss is averaged over the tasks that did
    not: a mean that one exploding task decides says nothing. The fraction that diverged is in the
    tables."""
    shares = [share or 0.0 for run in group.runs for share in run.test.get("diverged") or []]
    use_converged = (
        group.metric == "loss"
        and any(shares)
        and all("loss_converged" in run.test for run in group.runs)
    )
    name = "loss_converged" if use_converged else group.metric
    steps = group.first.steps
    same = [run for run in group.runs if run.steps == steps]
    lines = [[at(run.test.get(name), place) for place in range(len(steps))] for run in same]
    means = [mean([line[place] for line in lines]) for place in range(len(steps))]
    scores = None if use_converged else group.pooled_scores(group.metric)
    if scores is not None:
        widths: list[float | None] = [stats.number(width) for width in stats.ci95(scores.mean(0))]
    else:
        own = [run.test.get(f"{name}_ci95") for run in same]
        widths = [mean([at(values, place) for values in own]) for place in range(len(steps))]
    return MeanCurve(steps, means, widths, lines if len(lines) > 1 else [], use_converged)


def cost_curve(group: Group, axis: Axis) -> CostCurve | None:
    """Return the mean over seeds and tasks, with its 95 % interval, against mean cost.

    A method without steps is one point. None without scores or costs."""
    scores = group.pooled_scores(group.metric)
    learn_costs = [learning_cost(run, axis) for run in group.runs]
    predict_cost = mean([prediction_cost(run, axis) for run in group.runs])
    if (
        scores is None
        or predict_cost is None
        or not learn_costs
        or any(part is None for part in learn_costs)
    ):
        return None
    cost = np.mean([part for part in learn_costs if part is not None], 0) + predict_cost
    steps_curve = mean_curve(group)  # of a loss over the tasks that did not diverge, where some did
    low, high = (
        (np.full(len(cost), np.nan),) * 2 if steps_curve.converged_only else interval(scores)
    )
    middle = np.asarray([np.nan if value is None else value for value in steps_curve.mean])
    places = [len(cost) - 1]
    if group.uses_steps:
        places = [place for place in range(len(cost)) if cost[place] > 0]
    return CostCurve(cost[places], middle[places], low[places], high[places])


def curves(groups: Sequence[Group]) -> list[Json]:
    """Return `curves` of comparison.json: one entry per label."""
    return [{"label": group.label, **vars(mean_curve(group))} for group in groups]


def cost_curves(groups: Sequence[Group]) -> list[Json]:
    """Return `cost_curves` of comparison.json: one entry per label and axis, if both are known."""
    rows = []
    for axis in AXES:
        for group in groups:
            entry = cost_curve(group, axis)
            if entry is not None:
                parts = {name: values.tolist() for name, values in entry._asdict().items()}
                rows.append({"label": group.label, "axis": axis, **parts})
    return rows
