"""Tasks at which a higher up-front cost breaks even: `break_even` of comparison.json."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.breakeven import BreakEven, at_common_levels, break_evens
from metalearn.evaluate.comparable import MethodCosts
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.random_effects import LEVEL
from metalearn.evaluate.statistics.fieller import PRECISION
from metalearn.evaluate.targets import cost_per_solved, least_level
from metalearn.results.break_even.missing import describe_missing
from metalearn.results.break_even.solved import Stop, point_of, stopped_outcomes
from metalearn.results.break_even.target import primary_level
from metalearn.results.contrasts import Pair
from metalearn.results.costs import (
    AXES,
    QUERIES,
    learning_cost,
    only_pretraining_unknown,
    prediction_cost,
    query_count,
    up_front_cost,
    uses_pretrained_weights,
)
from metalearn.results.design.timing import seconds_problems, timing_variances
from metalearn.results.records import Group, Json, Run

NO_CONTRAST = "an estimate: only contrasts have verdicts, and this pair is not one"
NO_TIMING = "no verdict in seconds"
OTHER_LEVEL = "an estimate: verdicts are at the level next to the target"
CHOSEN_LEVEL = "an estimate: the level was chosen on these tasks"


UNPUBLISHED = "the cost of the pretraining of {} was not published"


class CostScope(NamedTuple):
    """What is in the costs of a break-even count."""

    with_tuning: bool = True  # before the first task
    with_answering: bool = False  # predicting the queries of each task once
    queries: int | None = None  # per task; None: those of the test
    with_given: bool = True  # training pretrained weights elsewhere


class VerdictRule(NamedTuple):
    """Which pairs have verdicts: those of contrasts, in seconds only if both were timed alone."""

    contrasts: frozenset[frozenset[str]]
    timing_problems: dict[str, str]  # label -> why its seconds decide nothing
    # labels whose only unknown cost is that of pretrained weights
    unknown_pretraining: dict[Axis, frozenset[str]]
    partial: dict[str, str]  # label -> which of its seeds have no result

    def on(
        self, axis: Axis, count: BreakEven, *, is_primary: bool = True, with_given: bool = True
    ) -> Json:
        """Return `contrast`, `verdict` and `why` of a row; `is_primary`: it may have a verdict.

        `with_given`: the cost of training weights elsewhere is included."""
        contrast = {count.a, count.b} in self.contrasts
        untimed_labels = [name for name in (count.a, count.b) if name in self.timing_problems]
        verdict, why = str(count.verdict), count.why
        unknown = self.unknown_pretraining[axis] if with_given else frozenset()
        if unpriced := " and ".join(name for name in (count.a, count.b) if name in unknown):
            is_only_reason = why == f"not measured: the cost of {unpriced}"
            unpublished = UNPUBLISHED.format(unpriced)
            why = unpublished if is_only_reason else f"{why} ({unpublished})"
        if not contrast or not is_primary:
            open_ends = verdict in ("not_reached", "undecided") and why
            estimate = OTHER_LEVEL if contrast else NO_CONTRAST
            verdict, why = "undecided", estimate + (f"; {why}" if open_ends else "")
        elif axis == "seconds" and untimed_labels and verdict != "not_reached":
            reasons = "; ".join(f"{name}: {self.timing_problems[name]}" for name in untimed_labels)
            verdict, why = "undecided", f"{NO_TIMING} ({reasons})"
        elif partial_rows := [self.partial[n] for n in (count.a, count.b) if n in self.partial]:
            verdict, why = "undecided", "; ".join(partial_rows)
        return {"contrast": contrast, "verdict": verdict, "why": why}


def verdict_rule(groups: Sequence[Group], contrast_pairs: Sequence[Pair]) -> VerdictRule:
    unknown_pretraining = {
        axis: frozenset(
            group.label
            for group in groups
            if any(only_pretraining_unknown(run, axis) for run in group.runs)
        )
        for axis in AXES
    }
    partial_rows = {group.label: why for group in groups if (why := describe_missing(group))}
    pairs = frozenset(map(frozenset, contrast_pairs))
    return VerdictRule(pairs, seconds_problems(groups), unknown_pretraining, partial_rows)


SCOPES = (CostScope(), CostScope(with_tuning=False), CostScope(with_answering=True))
FREE = CostScope(with_given=False)  # for rows that start from pretrained weights
# Of contrasts alone, which have verdicts. Those by numbers of queries are several on one question:
# each is decided by intervals of this level, so that together they are false as often as one. Those
# without the cost of pretraining elsewhere answer another question.
BY_QUERIES = tuple(CostScope(with_answering=True, queries=count) for count in (*QUERIES, None))
QUERY_LEVEL = 1 - (1 - LEVEL) / len(BY_QUERIES)


def method_costs(
    group: Group,
    target: Json | None,
    axis: Axis,
    scope: CostScope = SCOPES[0],
    *,
    stop: Stop = "chosen",
    last: int | None = None,
) -> MethodCosts:
    """Return the costs of one label at a target; `stop` and `last` as in `stopped_outcomes`."""
    up_front_costs = [
        up_front_cost(run, axis, tuning=scope.with_tuning, pretraining=scope.with_given)
        for run in group.runs
    ]
    before = (
        None
        if any(part is None for part in up_front_costs)
        else np.asarray(up_front_costs, np.float64)
    )
    seeds = tuple(run.seed for run in group.runs)
    outcomes = stopped_outcomes(
        group,
        target,
        axis,
        answers=scope.with_answering,
        queries=scope.queries,
        stop=stop,
        last=last,
    )
    timing = timing_variances(group, partial(_seconds, scope, stop)) if axis == "seconds" else ()
    return MethodCosts(group.label, seeds, before, outcomes, origin(group), timing)


def _seconds(scope: CostScope, stop: Stop, run: Run) -> float | None:
    """Return the seconds of a task of a run up to its stopping step; the last one of several."""
    learn_seconds = learning_cost(run, "seconds")
    predict_seconds: float | None = 0.0
    if scope.with_answering:
        predict_seconds = prediction_cost(run, "seconds", scope.queries)
    if learn_seconds is None or predict_seconds is None:
        return None
    return float(learn_seconds[point_of(run) if stop == "chosen" else -1]) + predict_seconds


def origin(group: Group) -> str:
    """Return the row whose trained network this one starts from; its own label if there is none."""
    return str(group.first.method_config.get("start") or group.label)


def break_even(
    groups: Sequence[Group],
    target: Json | None,
    levels: Sequence[float],
    contrast_pairs: Sequence[Pair],
) -> list[Json]:
    """Return the `break_even` rows of comparison.json: every pair at every level, on both axes.

    Empty without a target. Verdicts are those of `contrast_pairs` at the primary level, with tuning
    and without answering, and for numbers of queries, by stricter intervals: every additional
    verdict may be false. All others are estimates."""
    if target is None or len(groups) < 2:
        return []
    rule, primary = verdict_rule(groups, contrast_pairs), primary_level(target, levels)
    return [
        row
        for level in levels
        for axis in AXES
        for row in _at_level(
            groups, {**target, "value": level}, axis, rule, is_primary=level == primary
        )
    ]


def _at_level(
    groups: Sequence[Group], target: Json, axis: Axis, rule: VerdictRule, *, is_primary: bool
) -> list[Json]:
    """Return the rows of every pair at one level, with their variants, which have no verdict.

    These are without tuning, with answering, and, if there are pretrained weights, without their
    cost; `by_queries` of contrasts has given numbers of queries per task, with verdicts."""
    pairs = list(combinations(range(len(groups)), 2))
    contrast_pairs = [pair for pair in pairs if {groups[n].label for n in pair} in rule.contrasts]

    def costs(scope: CostScope) -> list[MethodCosts]:
        return [method_costs(group, target, axis, scope) for group in groups]

    def variants(scope: CostScope) -> dict[tuple[int, int], Json]:
        counts = break_evens(costs(scope), pairs)
        return {pair: _variant(scope, one) for pair, one in zip(pairs, counts)}

    def decided(scope: CostScope) -> dict[tuple[int, int], Json]:
        counts = break_evens(costs(scope), contrast_pairs, QUERY_LEVEL)
        marks = [
            rule.on(axis, one, is_primary=is_primary, with_given=scope.with_given) for one in counts
        ]
        verdicts = [{"verdict": mark["verdict"], "why": mark["why"]} for mark in marks]
        entries = [_variant(scope, one) | mark for one, mark in zip(counts, verdicts)]
        return dict(zip(contrast_pairs, entries))

    mains = break_evens(costs(SCOPES[0]), pairs)
    others = [variants(scope) for scope in (*SCOPES[1:], *_free(groups, FREE))]
    numbers = (*BY_QUERIES, *_free(groups, *BY_QUERIES))
    by_queries = [decided(scope) for scope in numbers] if contrast_pairs else []
    rows = []
    for pair, main in zip(pairs, mains):
        row = {**_row(axis, main, rule, is_primary=is_primary), "level": target["value"]}
        row |= {"primary": is_primary, "with_tuning": True, "with_answering": False}
        row["seeds"] = list(main.seeds)
        row["variants"] = [table[pair] for table in others]
        rows.append({**row, "by_queries": [table[pair] for table in by_queries if pair in table]})
    return rows


def _free(groups: Sequence[Group], *scopes: CostScope) -> tuple[CostScope, ...]:
    """Return the scopes without the cost of pretraining; none if no row has pretrained weights."""
    given = any(uses_pretrained_weights(run) for group in groups for run in group.runs)
    return tuple(scope._replace(with_given=False) for scope in scopes) if given else ()


def _variant(scope: CostScope, count: BreakEven) -> Json:
    ends = None if count.ci95 is None else list(count.ci95)
    entry = {"a": count.a, "b": count.b, "verdict": "undecided", "tasks": count.tasks, "ci95": ends}
    return {**scope._asdict(), **entry}


def break_even_common(
    groups: Sequence[Group], target: Json | None, contrast_pairs: Sequence[Pair]
) -> list[Json]:
    """Return estimates at the hardest `level`, from the target down, that both of a pair reach.

    The level is null if there is none. There are no verdicts: the level is chosen on the test tasks
    that also determine the costs, and no interval accounts for that."""
    if target is None or len(groups) < 2:
        return []
    rows, levels = list[Json](), common_levels(groups, target)
    rule = verdict_rule(groups, contrast_pairs)
    for axis in AXES:

        def at(level: float, axis: Axis = axis) -> list[MethodCosts]:
            return [method_costs(group, {**target, "value": level}, axis) for group in groups]

        counts = at_common_levels(levels, at)
        rows += [{**_row(axis, one, rule), "level": level} for level, one in counts]
    for row in rows:
        is_open = row["verdict"] in ("not_reached", "undecided") and row["why"]
        if row["contrast"]:
            row["why"] = CHOSEN_LEVEL + (f"; {row['why']}" if is_open else "")
        row["verdict"] = "undecided"
    return rows


def common_levels(groups: Sequence[Group], target: Json) -> list[float]:
    """Return levels from the target down in steps of 5 points to `least_level`.

    For a loss they go up, each a quarter higher than the one before."""
    value = float(target["value"])
    if target["metric"] != "accuracy":
        return [value * 1.25**step for step in range(16)]
    least = least_level(groups[0].first.chance) - PRECISION
    multiples = [number / 20 for number in range(20, 0, -1)]
    return [value, *(level for level in multiples if least <= level < value)]


def _row(axis: Axis, count: BreakEven, rule: VerdictRule, *, is_primary: bool = True) -> Json:
    return {
        "a": count.a,
        "b": count.b,
        "axis": axis,
        **rule.on(axis, count, is_primary=is_primary),
        "tasks": count.tasks,
        "ci95": None if count.ci95 is None else list(count.ci95),
        "leave_one_out": [{"seed": seed, "tasks": tasks} for seed, tasks in count.leave_one_out],
    }


def break_even_lines(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """Return FLOPs up front and per solved task, for the labels of which both are known.

    `by_queries` has those per solved task with the prediction of numbers of queries. A row whose
    pretraining elsewhere has an unknown cost is there without it, as `pretraining: free`."""
    return [line for group in groups if (line := _line(group, target)) is not None]


def _line(group: Group, target: Json | None) -> Json | None:
    free = any(only_pretraining_unknown(run, "flops") for run in group.runs)
    base = CostScope(with_given=not free)
    costs = method_costs(group, target, "flops", base)
    each = _per_solved(costs)
    if costs.up_front is None or costs.found is None or each is None:
        return None
    up, share = float(costs.up_front.mean()), float(costs.found.solved.mean())
    if up + each == 0:
        return None  # a line at zero has no place on a logarithmic axis
    by_queries = []
    for count in sorted({*QUERIES, query_count(group.first) or 1}):
        scope = base._replace(with_answering=True, queries=count)
        total = _per_solved(method_costs(group, target, "flops", scope))
        by_queries += [] if total is None else [{"queries": count, "per_solved": total}]
    line = {"label": group.label, "up_front": up, "per_solved": each, "share": share}
    return line | {"by_queries": by_queries} | ({"pretraining": "free"} if free else {})


def _per_solved(costs: MethodCosts) -> float | None:
    """Return the cost per solved task; None if it is unknown or no task is solved."""
    each = None if costs.found is None else cost_per_solved(costs.found)
    return each if each is not None and np.isfinite(each) else None
