"""Tasks at which a higher up-front cost breaks even: `break_even` of comparison.json."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.breakeven import BreakEven, MethodCosts, at_common_levels, break_evens
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.fieller import PRECISION
from metalearn.evaluate.targets import cost_per_solved
from metalearn.results.break_even.solved import Stop, reached
from metalearn.results.contrasts import Pair
from metalearn.results.costs import (
    AXES,
    QUERIES,
    is_given,
    only_given_unknown,
    timing_problem,
    up_front,
)
from metalearn.results.records import Group, Json

NO_CONTRAST = "an estimate: only contrasts have verdicts, and this pair is not one"


FREE_TO_US = "the pretraining of {} is excluded, as its published cost is unknown"


class CostScope(NamedTuple):
    """What is in the costs of a break-even count."""

    with_tuning: bool = True  # before the first task
    with_answering: bool = False  # predicting the queries of each task once
    queries: int | None = None  # so many a task; None: those of the test
    with_given: bool = True  # what somebody else paid for given weights


class Rule(NamedTuple):
    """Which rows have verdicts: those of contrasts, in seconds only if both were timed alone."""

    tested: frozenset[frozenset[str]]
    untimed: dict[str, str]  # label -> why its seconds decide nothing
    given: dict[Axis, frozenset[str]]  # rows of which the price of given weights alone is unknown

    def on(self, axis: Axis, found: BreakEven) -> Json:
        """`contrast`, `verdict` and `why` of a row."""
        contrast = {found.a, found.b} in self.tested
        untimed = [name for name in (found.a, found.b) if name in self.untimed]
        verdict, why = str(found.verdict), found.why
        if given := [name for name in (found.a, found.b) if name in self.given[axis]]:
            why = FREE_TO_US.format(" and ".join(given))
        if not contrast:
            open_ends = verdict in ("not_reached", "undecided") and why
            verdict, why = "undecided", NO_CONTRAST + (f"; {why}" if open_ends else "")
        elif axis == "seconds" and untimed and verdict != "not_reached":
            reasons = "; ".join(f"{name}: {self.untimed[name]}" for name in untimed)
            verdict, why = "undecided", f"no verdict in seconds ({reasons})"
        return {"contrast": contrast, "verdict": verdict, "why": why}


def rule_of(groups: Sequence[Group], tested: Sequence[Pair]) -> Rule:
    problems = {
        group.label: next((text for run in group.runs if (text := timing_problem(run))), "")
        for group in groups
    }
    untimed = {label: text for label, text in problems.items() if text}
    given = {
        axis: frozenset(
            group.label
            for group in groups
            if any(only_given_unknown(run, axis) for run in group.runs)
        )
        for axis in AXES
    }
    return Rule(frozenset(map(frozenset, tested)), untimed, given)


SCOPES = (CostScope(), CostScope(with_tuning=False), CostScope(with_answering=True))
FREE = CostScope(with_given=False)  # where a row starts from weights that somebody else trained
# Of contrasts alone, which have verdicts.
BY_QUERIES = tuple(CostScope(with_answering=True, queries=count) for count in QUERIES)


def costs_of(
    group: Group,
    target: Json | None,
    axis: Axis,
    scope: CostScope = SCOPES[0],
    *,
    stop: Stop = "chosen",
    last: int | None = None,
) -> MethodCosts:
    """The costs of one label at a target; `stop` and `last` as in `reached`."""
    spent = [
        up_front(run, axis, tuning=scope.with_tuning, given=scope.with_given) for run in group.runs
    ]
    known = None if any(part is None for part in spent) else np.asarray(spent, np.float64)
    seeds = tuple(run.seed for run in group.runs)
    found = reached(
        group,
        target,
        axis,
        answers=scope.with_answering,
        queries=scope.queries,
        stop=stop,
        last=last,
    )
    return MethodCosts(group.label, seeds, known, found, origin(group))


def origin(group: Group) -> str:
    """The row whose trained network this one starts from; its own label where it has none."""
    return str(group.first.method_config.get("start") or group.label)


def break_even(
    groups: Sequence[Group], target: Json | None, levels: Sequence[float], tested: Sequence[Pair]
) -> list[Json]:
    """The `break_even` rows of comparison.json: every pair at every level, in FLOPs and in seconds.

    Empty without a target. Pairs that are not `tested` are estimates."""
    if target is None or len(groups) < 2:
        return []
    rule = rule_of(groups, tested)
    return [
        row
        for level in levels
        for axis in AXES
        for row in _at_level(groups, {**target, "value": level}, axis, rule)
    ]


def _at_level(groups: Sequence[Group], target: Json, axis: Axis, rule: Rule) -> list[Json]:
    """Every pair at one level, with its variants: without tuning, with answering, and with given
    weights for free, where there are any; `by_queries` of contrasts has so many queries a task."""
    pairs = list(combinations(range(len(groups)), 2))
    tested = [pair for pair in pairs if {groups[n].label for n in pair} in rule.tested]

    def found(scope: CostScope, chosen: list[tuple[int, int]]) -> dict[tuple[int, int], Json]:
        counted = break_evens([costs_of(group, target, axis, scope) for group in groups], chosen)
        return {pair: _variant(scope, axis, one, rule) for pair, one in zip(chosen, counted)}

    mains = break_evens([costs_of(group, target, axis) for group in groups], pairs)
    free = (FREE,) if any(is_given(run) for group in groups for run in group.runs) else ()
    others = [found(scope, pairs) for scope in (*SCOPES[1:], *free)]
    by_queries = [found(scope, tested) for scope in BY_QUERIES] if tested else []
    rows = []
    for pair, main in zip(pairs, mains):
        row = {**_row(axis, main, rule), "level": target["value"], "with_tuning": True}
        row |= {"with_answering": False, "seeds": list(main.seeds)}
        row["variants"] = [table[pair] for table in others]
        rows.append({**row, "by_queries": [table[pair] for table in by_queries if pair in table]})
    return rows


def _variant(scope: CostScope, axis: Axis, found: BreakEven, rule: Rule) -> Json:
    verdict = rule.on(axis, found)["verdict"]
    ends = None if found.ci95 is None else list(found.ci95)
    counted = {"a": found.a, "b": found.b, "verdict": verdict, "tasks": found.tasks, "ci95": ends}
    return {**scope._asdict(), **counted}


def break_even_common(
    groups: Sequence[Group], target: Json | None, tested: Sequence[Pair]
) -> list[Json]:
    """The same at the hardest `level` of the metric that both of a pair reach.

    Null where there is none."""
    if target is None or len(groups) < 2:
        return []
    rows, levels, rule = list[Json](), common_levels(groups, target), rule_of(groups, tested)
    for axis in AXES:

        def at(level: float, axis: Axis = axis) -> list[MethodCosts]:
            return [costs_of(group, {**target, "value": level}, axis) for group in groups]

        found = at_common_levels(levels, at)
        rows += [{**_row(axis, one, rule), "level": level} for level, one in found]
    return rows


def common_levels(groups: Sequence[Group], target: Json) -> list[float]:
    """Levels from the target down in steps of 5 points to `least_level`.

    Of a loss upwards, a quarter more each time."""
    value = float(target["value"])
    if target["metric"] != "accuracy":
        return [value * 1.25**step for step in range(16)]
    least = least_level(groups[0].first.chance) - PRECISION
    rounded = [number / 20 for number in range(20, 0, -1)]
    return [value, *(level for level in rounded if least <= level < value)]


def least_level(chance: float) -> float:
    """The easiest level that luck does not reach: twice chance; of 2 classes, where that is 1,
    halfway between chance and 1."""
    return min(2 * chance, (1 + chance) / 2)


def _row(axis: Axis, found: BreakEven, rule: Rule) -> Json:
    return {
        "a": found.a,
        "b": found.b,
        "axis": axis,
        **rule.on(axis, found),
        "tasks": found.tasks,
        "ci95": None if found.ci95 is None else list(found.ci95),
        "leave_one_out": [{"seed": seed, "tasks": tasks} for seed, tasks in found.leave_one_out],
    }


def break_even_lines(groups: Sequence[Group], target: Json | None) -> list[Json]:
    """FLOPs up front and of one solved task, of labels where both are known."""
    return [line for group in groups if (line := _line(group, target)) is not None]


def _line(group: Group, target: Json | None) -> Json | None:
    found = costs_of(group, target, "flops")
    each = None if found.found is None else cost_per_solved(found.found)
    if found.up_front is None or found.found is None or not each:
        return None
    up, share = float(found.up_front.mean()), float(found.found.solved.mean())
    return {"label": group.label, "up_front": up, "per_solved": each, "share": share}
