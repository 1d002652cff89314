"""`summary` and `paired` of comparison.json: one line per label, and differences of two labels."""

from __future__ import annotations

import math

import numpy as np

from metalearn.evaluate import random_effects, stats
from metalearn.evaluate.breakeven import LEAST_TASKS
from metalearn.results.curves import mean_curve
from metalearn.results.records import Array, Group, Json, at, mean
from metalearn.results.reliability import agreement, binomial_reliability

AUC_AXIS = "log2(1 + steps)"


def summary(group: Group) -> Json:
    """Return one label: headline with both intervals, area under the curve, interquartile mean.

    `ci95_tasks` is over tasks, each task's score averaged over seeds first; `ci95_seeds` is the t
    interval over the seeds' values, None for one seed. `auc` is over log2(1 + steps), `auc_linear`
    over steps, both divided by the width, of the mean curve in the figures (for a loss, over the
    tasks that did not diverge if some did); a method without steps has its constant. `reliability`
    and `agreement` as in results/reliability.py. `nll` excludes the fraction `nll_left_out` of the
    tasks, which diverged or have no finite likelihood for some seed."""
    column = group.at_headline()
    line = mean_curve(group)
    heights = [math.nan if value is None else value for value in line.mean]
    worst = -math.inf if group.higher_better else math.inf
    return {
        "label": group.label,
        "metric": group.metric,
        "step": group.first.headline_step if group.uses_steps else None,
        "seeds": [run.seed for run in group.runs],
        "value": group.value(),
        "ci95_tasks": _tasks_ci95(group, column),
        "ci95_seeds": _seeds_ci95(group),
        **_interval_over_both(column),
        "median": _test_value(group, "loss_median") if group.metric == "loss" else None,
        "reliability": None if column is None else _reliability(group, column),
        "agreement": None if column is None else agreement(column),
        "diverged": group.diverged(),
        **_likelihood(group),
        "calibration_error": _test_value(group, "calibration_error"),
        "calibration_floor": _test_value(group, "calibration_floor"),
        "auc": stats.auc(np.log2(1 + np.asarray(line.steps)), heights),
        "auc_axis": AUC_AXIS,
        "auc_linear": stats.auc(line.steps, heights),
        "iqm": None if column is None else stats.iqm(column, worst),
    }


def _test_value(group: Group, name: str) -> float | None:
    """Return a test value at the headline step, mean over seeds; None if it is not known."""
    return mean([at(run.test.get(name), run.headline_point) for run in group.runs])


def _likelihood(group: Group) -> Json:
    """Return `nll`, its half width over tasks that no seed excludes, and the others' fraction."""
    names = ("nll", "nll_ci95", "nll_left_out")
    values = {name: _test_value(group, name) for name in names}
    if (
        len(group.runs) == 1
        or values["nll"] is None
        or (scores := group.pooled_scores("nll")) is None
    ):
        return values
    column = np.stack([part[:, run.headline_point] for part, run in zip(scores, group.runs)])
    finite = np.isfinite(column).all(0)
    estimate = stats.describe(column[:, finite].mean(0))
    return dict(zip(names, (estimate.value, estimate.ci95, 1 - float(finite.mean())), strict=True))


def _seeds_ci95(group: Group) -> float | None:
    return stats.seeds_ci95([run.result["headline"].get("value") for run in group.runs])


def _interval_over_both(column: Array | None) -> Json:
    """Return `interval` [low, high] over seeds and tasks, and each seed's own value.

    With its degrees of freedom, and what it holds for."""
    if column is None:
        return {"interval": None, "freedom": None, "covers": None, "per_seed": None}
    estimate = random_effects.estimate(column)
    return {
        "interval": None if estimate.ci95 is None else list(estimate.ci95),
        "freedom": estimate.freedom,
        "covers": estimate.covers,
        "per_seed": list(estimate.per_seed),
    }


def _reliability(group: Group, column: Array) -> float | None:
    """Return the reliability of the headline accuracy of one task.

    None for a loss, and where tasks differ in their number of queries."""
    task = group.first.task
    queries = int(task.get("ways") or 0) * int(task.get("queries") or 0)
    has_one_size = group.metric == "accuracy" and "ranges" not in task
    return binomial_reliability(column, queries) if has_one_size else None


def _tasks_ci95(group: Group, column: Array | None) -> float | None:
    if len(group.runs) == 1 or column is None:  # what the run itself says
        return mean([run.result["headline"].get("ci95") for run in group.runs])
    return stats.describe(column.mean(0)).ci95


def paired_difference(a: Group, b: Group) -> Json:
    """Return the difference a - b at headline steps, over common seeds and the same test tasks.

    If one was tested on fewer tasks, it is over the common ones, which are the first ones."""
    entry: Json = {"a": a.label, "b": b.label, "metric": a.metric}
    entry |= {"difference": None, "ci95": None, "p": None}
    common_seeds = sorted({run.seed for run in a.runs} & {run.seed for run in b.runs})
    entry |= {"seeds": common_seeds, "why": None}
    if a.metric != b.metric or not common_seeds:
        return entry | {"why": "other metrics" if a.metric != b.metric else "no seed in common"}
    first, second = (
        Group(g.label, [run for run in g.runs if run.seed in common_seeds]).at_headline()
        for g in (a, b)
    )
    if (
        first is None
        or second is None
        or len(first) != len(second)
        or _fingerprints(a) != _fingerprints(b)
    ):
        return entry | {"why": "the methods were not scored on the same test episodes"}
    tasks = min(first.shape[1], second.shape[1])
    entry |= {"tasks": tasks}
    if tasks < LEAST_TASKS:
        why = f"{tasks} common tasks are too few for an interval: at least {LEAST_TASKS}"
        return entry | {"why": why}
    estimate = random_effects.paired(first[:, :tasks], second[:, :tasks])
    if estimate.undefined:
        return entry | {
            "why": f"undefined: the scores of {estimate.undefined} tasks are not finite"
        }
    ci95 = None if estimate.ci95 is None else list(estimate.ci95)
    return entry | {
        "difference": estimate.value,
        "ci95": ci95,
        "p": estimate.p,
        "per_seed": list(estimate.per_seed),
        "freedom": estimate.freedom,
        "covers": estimate.covers,
    }


def _fingerprints(group: Group) -> set[str]:
    return {str((run.result.get("episodes") or {}).get("fingerprint")) for run in group.runs}
