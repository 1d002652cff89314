"""How the break-even number of tasks depends on choices that are no property of the methods.

These are level, stopping rule, length of the curve, tuning, answering, and unit of cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metalearn.evaluate.breakeven import BreakEven, MethodCosts, break_evens
from metalearn.evaluate.cost_block import Axis
from metalearn.results.break_even.counts import SCOPES, CostScope, costs_of
from metalearn.results.break_even.solved import Stop
from metalearn.results.contrasts import Pair
from metalearn.results.records import Group, Json

NEAR = 0.05  # distance of the levels beside a single one; of a loss, a quarter of it
WITHOUT_TUNING, WITH_ANSWERING = SCOPES[1], SCOPES[2]


class Choice(NamedTuple):
    """One way of counting; `choice` names what differs from the first one."""

    choice: str
    value: str
    level: float
    scope: CostScope = SCOPES[0]
    stop: Stop = "chosen"
    last: int | None = None
    axis: Axis = "flops"


def sensitivity(
    groups: Sequence[Group], target: Json | None, levels: Sequence[float], tested: Sequence[Pair]
) -> list[Json]:
    """The `sensitivity` rows of comparison.json: one a contrast, with estimates under each choice.

    Empty without a target."""
    rows = {group.label: group for group in groups}
    if target is None:
        return []
    return [
        _row(rows[a], rows[b], target, levels)
        for a, b in tested
        if a in rows and b in rows and rows[a].metric == rows[b].metric
    ]


def _row(a: Group, b: Group, target: Json, levels: Sequence[float]) -> Json:
    def count(one: Choice) -> BreakEven:
        at = {**target, "value": one.level}

        def costs(group: Group) -> MethodCosts:
            return costs_of(group, at, one.axis, one.scope, stop=one.stop, last=one.last)

        return break_evens([costs(a), costs(b)])[0]

    level = _reached_level(levels, target, lambda level: count(Choice("base", "", level)))
    choices = _choices(level, levels, target, a.first.steps)
    counted = [_entry(one, count(one)) for one in choices]
    first = counted[0]
    return {"a": first["a"], "b": first["b"], "level": level, "choices": counted}


def _reached_level(
    levels: Sequence[float], target: Json, count: Callable[[float], BreakEven]
) -> float:
    """The hardest level that both reach; the easiest where there is none."""
    up = target["metric"] == "accuracy"
    order = sorted(levels, reverse=up)
    return next((one for one in order if count(one).verdict != "not_reached"), order[-1])


def _choices(
    level: float, levels: Sequence[float], target: Json, steps: Sequence[int]
) -> list[Choice]:
    others = [one for one in levels if one != level] or _beside(level, target)
    found = [Choice("base", "", level)]
    found += [Choice("level", f"{one:.4g}", one) for one in others]
    found += [Choice("stop", "at the last step", level, stop="last")]
    found += [Choice("stop", "as soon as solved", level, stop="solved")]
    taken = [place for place, step in enumerate(steps) if step > 0]
    if len(taken) > 1:
        middle = taken[(len(taken) - 1) // 2]
        value = f"as soon as solved, to step {steps[middle]}"
        found.append(Choice("curve", value, level, stop="solved", last=middle))
    found.append(Choice("tuning", "without", level, scope=WITHOUT_TUNING))
    found.append(Choice("answering", "with", level, scope=WITH_ANSWERING))
    return [*found, Choice("axis", "in seconds", level, axis="seconds")]


def _beside(level: float, target: Json) -> list[float]:
    if target["metric"] == "accuracy":
        near = (level - NEAR, level + NEAR)
        return [round(one, 6) for one in near if 0 < one <= 1]
    return [level / 1.25, level * 1.25]


def _entry(one: Choice, found: BreakEven) -> Json:
    return {
        "choice": one.choice,
        "value": one.value,
        "a": found.a,
        "b": found.b,
        "reached": found.verdict != "not_reached",
        "counted": _counted(found),
        "tasks": found.tasks,
        "ci95": None if found.ci95 is None else list(found.ci95),
    }


def _counted(found: BreakEven) -> str:
    """What stands for the number of tasks: itself, or why there is none."""
    if found.verdict in ("not_reached", "same"):
        return str(found.verdict)
    if found.crossing is None:
        return "open"
    return "never" if found.tasks is None else "tasks"
