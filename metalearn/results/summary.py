"""`summary` and `paired` of comparison.json: one line per label, and differences of two labels."""

from __future__ import annotations

import math

import numpy as np

from metalearn.evaluate import random_effects, stats
from metalearn.evaluate.breakeven import LEAST_TASKS
from metalearn.results.curves import curve
from metalearn.results.records import Array, Group, Json, at, mean
from metalearn.results.reliability import agreement, binomial_reliability

AUC_AXIS = "log2(1 + steps)"


def summary(group: Group) -> Json:
    """One label: headline with both intervals, area under the curve, interquartile mean.

    `ci95_tasks` is over tasks, each task's score averaged over seeds first; `ci95_seeds` is the t
    interval over the seeds' values, None for one seed. `auc` is taken over log2(1 + steps),
    `auc_linear` over steps, both divided by the width and of the mean curve that the figures show
    (of a loss, over the tasks that did not diverge where some did); a method without steps has its
    constant. `reliability` and `agreement` as in results/reliability.py. `nll` leaves out the share
    `nll_left_out` of the tasks, which diverged or have no finite likelihood for some seed."""
    column = group.at_headline()
    shown = curve(group)
    heights = [math.nan if value is None else value for value in shown.mean]
    worst = -math.inf if group.higher_better else math.inf
    return {
        "label": group.label,
        "metric": group.metric,
        "step": group.first.headline_step if group.uses_steps else None,
        "seeds": [run.seed for run in group.runs],
        "value": group.value(),
        "ci95_tasks": _over_tasks(group, column),
        "ci95_seeds": _over_seeds(group),
        **_over_both(column),
        "reliability": None if column is None else _reliability(group, column),
        "agreement": None if column is None else agreement(column),
        "diverged": group.diverged(),
        **_likelihood(group),
        "calibration_error": _of_test(group, "calibration_error"),
        "auc": stats.auc(np.log2(1 + np.asarray(shown.steps)), heights),
        "auc_axis": AUC_AXIS,
        "auc_linear": stats.auc(shown.steps, heights),
        "iqm": None if column is None else stats.iqm(column, worst),
    }


def _of_test(group: Group, name: str) -> float | None:
    """What the tests say at the headline step, mean over seeds; None where it is not known."""
    return mean([at(run.test.get(name), run.headline_point) for run in group.runs])


def _likelihood(group: Group) -> Json:
    """`nll` and its half width over the tasks that no seed left out, and the others' share."""
    names = ("nll", "nll_ci95", "nll_left_out")
    found = {name: _of_test(group, name) for name in names}
    if len(group.runs) == 1 or found["nll"] is None or (scores := group.pooled("nll")) is None:
        return found
    column = np.stack([part[:, run.headline_point] for part, run in zip(scores, group.runs)])
    there = np.isfinite(column).all(0)
    over = stats.describe(column[:, there].mean(0))
    return dict(zip(names, (over.value, over.ci95, 1 - float(there.mean())), strict=True))


def _over_seeds(group: Group) -> float | None:
    return stats.seeds_ci95([run.result["headline"].get("value") for run in group.runs])


def _over_both(column: Array | None) -> Json:
    """`interval` [low, high] over seeds and tasks, its degrees of freedom, what it holds for, and
    each seed's own value."""
    if column is None:
        return {"interval": None, "freedom": None, "covers": None, "per_seed": None}
    found = random_effects.estimate(column)
    return {
        "interval": None if found.ci95 is None else list(found.ci95),
        "freedom": found.freedom,
        "covers": found.covers,
        "per_seed": list(found.per_seed),
    }


def _reliability(group: Group, column: Array) -> float | None:
    """Of the headline accuracy of one task; None for a loss."""
    task = group.first.task
    queries = int(task.get("ways") or 0) * int(task.get("queries") or 0)
    return binomial_reliability(column, queries) if group.metric == "accuracy" else None


def _over_tasks(group: Group, column: Array | None) -> float | None:
    if len(group.runs) == 1 or column is None:  # what the run itself says
        return mean([run.result["headline"].get("ci95") for run in group.runs])
    return stats.describe(column.mean(0)).ci95


def paired(a: Group, b: Group) -> Json:
    """Difference a - b at each one's headline step, over common seeds and the same test tasks.

    Where one was tested on fewer, over those that both met, which are the first ones."""
    entry: Json = {"a": a.label, "b": b.label, "metric": a.metric}
    entry |= {"difference": None, "ci95": None, "p": None}
    shared = sorted({run.seed for run in a.runs} & {run.seed for run in b.runs})
    entry |= {"seeds": shared, "why": None}
    if a.metric != b.metric or not shared:
        return entry | {"why": "other metrics" if a.metric != b.metric else "no seed in common"}
    first, second = (
        Group(g.label, [run for run in g.runs if run.seed in shared]).at_headline() for g in (a, b)
    )
    if first is None or second is None or len(first) != len(second) or _prints(a) != _prints(b):
        return entry | {"why": "the methods were not scored on the same test episodes"}
    tasks = min(first.shape[1], second.shape[1])
    entry |= {"tasks": tasks}
    if tasks < LEAST_TASKS:
        why = f"{tasks} common tasks are too few for an interval: at least {LEAST_TASKS}"
        return entry | {"why": why}
    found = random_effects.paired(first[:, :tasks], second[:, :tasks])
    if found.undefined:
        return entry | {"why": f"undefined: the scores of {found.undefined} tasks are not finite"}
    ci95 = None if found.ci95 is None else list(found.ci95)
    return entry | {
        "difference": found.value,
        "ci95": ci95,
        "p": found.p,
        "per_seed": list(found.per_seed),
        "freedom": found.freedom,
        "covers": found.covers,
    }


def _prints(group: Group) -> set[str]:
    return {str((run.result.get("episodes") or {}).get("fingerprint")) for run in group.runs}
