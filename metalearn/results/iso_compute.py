"""Scores at the same total compute: what the validation curve of each method reaches in a budget.

The last validation within a budget counts, not the best: the maximum of noisy scores is too high,
the more so the more often a method was scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.stats import seeds_ci95
from metalearn.results import costs
from metalearn.results.design.tuning import fields_tuned_after_training, score_after_training
from metalearn.results.records import Group, Json, Run, mean

BUDGETS = 4


class Score(NamedTuple):
    """A validation score and half of its 95 % interval: over seeds; for one seed, over tasks."""

    value: float | None
    ci95: float | None


class SeedScore(NamedTuple):
    """The score of a run; `untuned` if fields had values of the file that were tuned later."""

    score: Score
    untuned: bool


class GroupScore(NamedTuple):
    """The score of a method, the number of seeds in its mean, and whether it is `untuned`."""

    score: Score
    seeds: int
    untuned: bool


class BudgetScores(NamedTuple):
    """Budgets in FLOPs, and each method's validation score within each, or None."""

    budgets: list[float]
    scores: list[list[GroupScore]]


def budget_scores(groups: Sequence[Group], tasks: int) -> BudgetScores | None:
    """Return the scores at four log-spaced budgets, or None without costs.

    The budgets go from the total cost of the cheapest method to that of the most expensive."""
    totals = [total for group in groups if (total := costs.total(group, "flops", tasks))]
    if len(totals) < 2 or max(totals) <= min(totals):
        return None
    budgets = [float(budget) for budget in np.geomspace(min(totals), max(totals), BUDGETS)]
    # The ends are two methods' own totals: rounding should not leave them out.
    return BudgetScores(
        budgets,
        [[_score(group, budget * (1 + 1e-9), tasks) for budget in budgets] for group in groups],
    )


def equal_compute(groups: Sequence[Group], tasks: int) -> Json | None:
    """Return `equal_compute` of comparison.json, or None without costs."""
    table = budget_scores(groups, tasks)
    if table is None:
        return None
    rows = [
        {"label": group.label}
        | {
            "values": [one.score.value for one in scores],
            "ci95": [one.score.ci95 for one in scores],
        }
        | {"seeds": [one.seeds for one in scores], "untuned": [one.untuned for one in scores]}
        | {"tuned_after_training": fields_tuned_after_training(group.first)}
        for group, scores in zip(groups, table.scores)
    ]
    return {"tasks": tasks, "budgets": table.budgets, "rows": rows}


def _score(group: Group, budget: float, tasks: int) -> GroupScore:
    """Return the mean over seeds of the last validation within the budget; None if a seed has
    none.

    If only some seeds were scored with tuned values, as under `budget.once`, it is over these."""
    points = [_seed_score(run, budget, tasks) for run in group.runs]
    if any(point.score.value is None for point in points):
        return GroupScore(Score(None, None), 0, untuned=False)
    scores = [point.score for point in points if not point.untuned]
    untuned = not scores
    scores = scores or [point.score for point in points]
    value = mean([one.value for one in scores])
    half = scores[0].ci95 if len(scores) == 1 else seeds_ci95([one.value for one in scores])
    return GroupScore(Score(value, None if value is None else half), len(scores), untuned)


def last_score_within(run: Run, budget: float, tasks: int) -> Score:
    """Return the last validation of a run that fits a budget of FLOPs.

    The budget covers tuning, training so far, and new tasks. After the whole training, it is the
    score of the values that were tuned then."""
    return _seed_score(run, budget, tasks).score


def _seed_score(run: Run, budget: float, tasks: int) -> SeedScore:
    """Return `last_score_within`, and whether later tuning changed its values."""
    before, each = costs.up_front_cost(run, "flops"), costs.learning_cost(run, "flops")
    points = [line for line in run.valid("valid") if line.get(run.metric) is not None]
    if before is None or each is None or not points:
        return SeedScore(Score(None, None), untuned=False)
    # the cost before this row's own first step, in any phase
    flops_at_start = run.result.get("started") or {}
    training = sum(
        float(_own_cost(run, phase).get("flops") or 0) - float(flops_at_start.get(phase) or 0)
        for phase in ("pretrain", "meta_train")
    )
    last = max(int(line["step"]) for line in points)
    other_flops = before - training + tasks * float(each[run.headline_point])
    inside = [
        line
        for line in points
        if other_flops + (training * int(line["step"]) / last if last else training) <= budget
    ]
    if not inside:
        return SeedScore(Score(None, None), untuned=False)
    if inside[-1] is points[-1] and (value := score_after_training(run)) is not None:
        # a trial with the values of the file repeats a validation, whose interval is known
        halves = [line.get(f"{run.metric}_ci95") for line in points if line[run.metric] == value]
        return SeedScore(Score(value, halves[-1] if halves else None), untuned=False)
    score = Score(float(inside[-1][run.metric]), inside[-1].get(f"{run.metric}_ci95"))
    return SeedScore(score, untuned=bool(fields_tuned_after_training(run)))


def _own_cost(run: Run, phase: str) -> Json:
    """Return the cost of a phase in this run, without that of pretraining elsewhere."""
    entry: Json = run.phase(phase)
    return entry.get("own") or entry
