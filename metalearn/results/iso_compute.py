"""Scores at the same total compute: what each method's validation curve had reached by a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.results import costs
from metalearn.results.records import Group, Json, Run, mean

BUDGETS = 4


class Iso(NamedTuple):
    """Budgets in FLOPs, and each method's best validation score within each; None where it had none
    yet.
    """

    budgets: list[float]
    values: list[list[float | None]]


def table(groups: Sequence[Group], tasks: int) -> Iso | None:
    """Four budgets between the cheapest and the dearest method, evenly on a logarithm; None without
    costs.
    """
    spent = [total for group in groups if (total := costs.total(group, "flops", tasks))]
    if len(spent) < 2 or max(spent) <= min(spent):
        return None
    budgets = [float(budget) for budget in np.geomspace(min(spent), max(spent), BUDGETS)]
    # The ends are two methods' own totals: rounding should not leave them out.
    return Iso(
        budgets,
        [[_value(group, budget * (1 + 1e-9), tasks) for budget in budgets] for group in groups],
    )


def equal_compute(groups: Sequence[Group], tasks: int) -> Json | None:
    """The `equal_compute` of comparison.json; None where `table` is."""
    found = table(groups, tasks)
    if found is None:
        return None
    rows = [{"label": group.label, "values": values} for group, values in zip(groups, found.values)]
    return {"tasks": tasks, "budgets": found.budgets, "rows": rows}


def _value(group: Group, budget: float, tasks: int) -> float | None:
    """Mean over seeds of the best validation within the budget; None where a seed had none."""
    return mean([best_within(run, budget, tasks) for run in group.runs])


def best_within(run: Run, budget: float, tasks: int) -> float | None:
    """The best validation score of a run whose tuning, training so far and new tasks fit a budget
    of FLOPs.
    """
    before, each = costs.up_front(run, "flops"), costs.learning(run, "flops")
    points = [line for line in run.valid("valid") if line.get(run.metric) is not None]
    if before is None or each is None or not points:
        return None
    started = (
        run.result.get("started") or {}
    )  # spent before this row's own first step, whatever its phase
    training = sum(
        float(run.phase(phase).get("flops") or 0) - float(started.get(phase) or 0)
        for phase in ("pretrain", "meta_train")
    )
    last = max(int(line["step"]) for line in points)
    fixed = before - training + tasks * float(each[run.headline_point])
    inside = [
        float(line[run.metric])
        for line in points
        if fixed + (training * int(line["step"]) / last if last else training) <= budget
    ]
    return (max if run.metric == "accuracy" else min)(inside, default=None)
