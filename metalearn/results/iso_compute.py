"""Scores at the same total compute: what each method's validation curve had reached by a budget.

The last validation within a budget counts, not the best: the maximum of noisy scores is too high,
the more so the more often a method was scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.stats import seeds_ci95
from metalearn.results import costs
from metalearn.results.records import Group, Json, Run, mean

BUDGETS = 4


class Score(NamedTuple):
    """A validation score; half of its 95 % interval: over seeds, of one seed over tasks."""

    value: float | None
    ci95: float | None


class Iso(NamedTuple):
    """Budgets in FLOPs, and each method's validation score within each, or None."""

    budgets: list[float]
    scores: list[list[Score]]


def table(groups: Sequence[Group], tasks: int) -> Iso | None:
    """Return the scores at four log-spaced budgets, or None without costs.

    The budgets go from the total cost of the cheapest method to that of the most expensive."""
    spent = [total for group in groups if (total := costs.total(group, "flops", tasks))]
    if len(spent) < 2 or max(spent) <= min(spent):
        return None
    budgets = [float(budget) for budget in np.geomspace(min(spent), max(spent), BUDGETS)]
    # The ends are two methods' own totals: rounding should not leave them out.
    return Iso(
        budgets,
        [[_score(group, budget * (1 + 1e-9), tasks) for budget in budgets] for group in groups],
    )


def equal_compute(groups: Sequence[Group], tasks: int) -> Json | None:
    """The `equal_compute` of comparison.json; None where `table` is."""
    found = table(groups, tasks)
    if found is None:
        return None
    rows = [
        {"label": group.label}
        | {"values": [one.value for one in scores], "ci95": [one.ci95 for one in scores]}
        for group, scores in zip(groups, found.scores)
    ]
    return {"tasks": tasks, "budgets": found.budgets, "rows": rows}


def _score(group: Group, budget: float, tasks: int) -> Score:
    """Mean over seeds of the last validation within the budget; None where a seed had none."""
    found = [last_within(run, budget, tasks) for run in group.runs]
    value = mean([one.value for one in found])
    half = found[0].ci95 if len(found) == 1 else seeds_ci95([one.value for one in found])
    return Score(value, None if value is None else half)


def last_within(run: Run, budget: float, tasks: int) -> Score:
    """The last validation of a run that fits a budget of FLOPs.

    The budget covers tuning, training so far, and new tasks."""
    before, each = costs.up_front(run, "flops"), costs.learning(run, "flops")
    points = [line for line in run.valid("valid") if line.get(run.metric) is not None]
    if before is None or each is None or not points:
        return Score(None, None)
    # spent before this row's own first step, whatever its phase
    started = run.result.get("started") or {}
    training = sum(
        float(_spent_here(run, phase).get("flops") or 0) - float(started.get(phase) or 0)
        for phase in ("pretrain", "meta_train")
    )
    last = max(int(line["step"]) for line in points)
    fixed = before - training + tasks * float(each[run.headline_point])
    inside = [
        line
        for line in points
        if fixed + (training * int(line["step"]) / last if last else training) <= budget
    ]
    if not inside:
        return Score(None, None)
    return Score(float(inside[-1][run.metric]), inside[-1].get(f"{run.metric}_ci95"))


def _spent_here(run: Run, phase: str) -> Json:
    """A phase without the price of weights that were trained elsewhere, which no step spreads."""
    entry: Json = run.phase(phase)
    return entry.get("own") or entry
