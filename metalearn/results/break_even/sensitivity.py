"""How the break-even number of tasks depends on choices that are not properties of the methods.

These are level, stopping rule, length of the curve, tuning, answering, and unit of cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metalearn.evaluate.breakeven import BreakEven, break_evens
from metalearn.evaluate.comparable import MethodCosts
from metalearn.evaluate.cost_block import Axis
from metalearn.results.break_even.counts import SCOPES, CostScope, method_costs
from metalearn.results.break_even.solved import Stop
from metalearn.results.contrasts import Pair
from metalearn.results.records import Group, Json

NEAR = 0.05  # distance of the levels next to a single one; for a loss, a quarter of it
WITHOUT_TUNING, WITH_ANSWERING = SCOPES[1], SCOPES[2]


class CountVariant(NamedTuple):
    """One way of counting; `choice` names what differs from the first one."""

    choice: str
    value: str
    level: float
    scope: CostScope = SCOPES[0]
    stop: Stop = "chosen"
    last: int | None = None
    axis: Axis = "flops"


def sensitivity(
    groups: Sequence[Group],
    target: Json | None,
    levels: Sequence[float],
    contrast_pairs: Sequence[Pair],
) -> list[Json]:
    """Return the `sensitivity` rows of comparison.json: the estimates of each contrast by variant.

    Empty without a target."""
    rows = {group.label: group for group in groups}
    if target is None:
        return []
    return [
        _row(rows[a], rows[b], target, levels)
        for a, b in contrast_pairs
        if a in rows and b in rows and rows[a].metric == rows[b].metric
    ]


def _row(a: Group, b: Group, target: Json, levels: Sequence[float]) -> Json:
    def count(one: CountVariant) -> BreakEven:
        at = {**target, "value": one.level}

        def costs(group: Group) -> MethodCosts:
            return method_costs(group, at, one.axis, one.scope, stop=one.stop, last=one.last)

        return break_evens([costs(a), costs(b)])[0]

    level = _hardest_level(levels, target, lambda level: count(CountVariant("base", "", level)))
    variants = _count_variants(level, levels, target, a.first.steps)
    entries = [_entry(variant, count(variant)) for variant in variants]
    first = entries[0]
    return {"a": first["a"], "b": first["b"], "level": level, "choices": entries}


def _hardest_level(
    levels: Sequence[float], target: Json, count: Callable[[float], BreakEven]
) -> float:
    """Return the hardest level at which the two are comparable, or not excluded by intervals.

    It is the easiest level if there is none."""
    up = target["metric"] == "accuracy"
    order = sorted(levels, reverse=up)
    return next((one for one in order if count(one).comparable), order[-1])


def _count_variants(
    level: float, levels: Sequence[float], target: Json, steps: Sequence[int]
) -> list[CountVariant]:
    others = [one for one in levels if one != level] or _neighbour_levels(level, target)
    variants = [CountVariant("base", "", level)]
    variants += [CountVariant("level", f"{one:.4g}", one) for one in others]
    variants += [CountVariant("stop", "at the last step", level, stop="last")]
    variants += [CountVariant("stop", "as soon as solved", level, stop="solved")]
    places = [place for place, step in enumerate(steps) if step > 0]
    if len(places) > 1:
        middle = places[(len(places) - 1) // 2]
        value = f"as soon as solved, to step {steps[middle]}"
        variants.append(CountVariant("curve", value, level, stop="solved", last=middle))
    variants.append(CountVariant("tuning", "without", level, scope=WITHOUT_TUNING))
    variants.append(CountVariant("answering", "with", level, scope=WITH_ANSWERING))
    return [*variants, CountVariant("axis", "in seconds", level, axis="seconds")]


def _neighbour_levels(level: float, target: Json) -> list[float]:
    if target["metric"] == "accuracy":
        near = (level - NEAR, level + NEAR)
        return [round(one, 6) for one in near if 0 < one <= 1]
    return [level / 1.25, level * 1.25]


def _entry(variant: CountVariant, count: BreakEven) -> Json:
    return {
        "choice": variant.choice,
        "value": variant.value,
        "a": count.a,
        "b": count.b,
        "reached": count.verdict != "not_reached",
        "counted": _describe_count(count),
        "tasks": count.tasks,
        "ci95": None if count.ci95 is None else list(count.ci95),
    }


def _describe_count(count: BreakEven) -> str:
    """Return "tasks" if there is a number of tasks, else the reason why there is none."""
    if count.verdict in ("not_reached", "same"):
        return str(count.verdict)
    if count.crossing is None:
        return "open"
    return "never" if count.tasks is None else "tasks"
