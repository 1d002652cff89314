"""Format numbers for a page: a dash for what was not measured, zero for a measured zero."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from metalearn.evaluate.cost_block import Axis

NONE = "–"
WIDER = "wider than the scale"  # instead of an interval, an end of which is no possible score
BEYOND = 0.01  # of an accuracy
LEAST_COMPILING = 1e-3  # seconds; a phase that compiles nothing takes some microseconds


def duration(seconds: float | None) -> str:
    """Format seconds: 85 µs, 12.3 ms, 4.6 s, 12 min, 3.2 h."""
    if seconds is None:
        return NONE
    for limit, factor, unit in (
        (1e-3, 1e6, "µs"),
        (1, 1e3, "ms"),
        (120, 1, "s"),
        (7200, 1 / 60, "min"),
    ):
        if seconds < limit * 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def operations(flops: float) -> str:
    """Format FLOPs: 850, 12.3 k, 4.6 M, 1.2 G, 3 T, 2.5 P."""
    for power, unit in enumerate(("", " k", " M", " G", " T")):
        if abs(flops) < 1000 ** (power + 1) * 0.9995:
            return f"{flops / 1000**power:.3g}{unit}"
    return f"{flops / 1e15:.3g} P"


def amount(value: float, axis: Axis) -> str:
    """Format a cost in the unit of its axis: 12.3 MFLOP, 850 FLOP, 4.6 s."""
    if axis == "seconds":
        return duration(value)
    text = operations(value)
    return f"{text}FLOP" if " " in text else f"{text} FLOP"


def cost(value: float | None, axis: Axis) -> str:
    return NONE if value is None else "0" if value == 0 else amount(value, axis)


def compiling(seconds: float | None) -> str:
    """Format the seconds of compiling and first steps; a dash if nothing was compiled."""
    return NONE if seconds is None or seconds < LEAST_COMPILING else duration(seconds)


def plain_cost(value: float | None, axis: Axis) -> str:
    """Format a cost in a table whose title names the unit: 12.3 M, 4.6 s."""
    return operations(value) if axis == "flops" and value is not None else cost(value, axis)


def score(value: float | None, percent: bool, like: float | None = None) -> str:
    """Format a percentage with one decimal, or an error with digits that suit the size of
    `like`."""
    if value is None:
        return NONE
    if percent:
        return f"{value * 100:.1f}"
    size = abs(value if like is None else like)
    if size >= 1000 or 0 < size < 0.01:
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 1 else f"{value:.2f}"


def with_ci(value: float | None, ci95: float | None, percent: bool) -> str:
    text = score(value, percent)
    return text if value is None or ci95 is None else f"{text} ± {score(ci95, percent, value)}"


def half_width(value: float | None, scale: float = 1.0) -> str:
    return NONE if value is None else f"± {value * scale:.3g}"


def score_interval(ends: Sequence[float], percent: bool, seeds: Sequence[float | None] = ()) -> str:
    """Format the interval of a mean score, or say that an end of it is no possible score.

    A mean accuracy is between 0 and 1, and a loss that is positive for all `seeds` is above 0; an
    end that is beyond by at most a point of accuracy is set to the end of the scale."""
    low, high = ends
    if percent:
        is_wide = low < -BEYOND or high > 1 + BEYOND
        low, high = max(0.0, low), min(1.0, high)
    else:
        is_wide = low < 0 <= min((value for value in seeds if value is not None), default=-1)
    return WIDER if is_wide else f"{score(low, percent)} to {score(high, percent)}"


def difference_interval(ends: Sequence[float], percent: bool) -> str:
    """Format the interval of a difference, of two accuracies only if it can be one."""
    if percent and max(map(abs, ends)) > 1:
        return WIDER
    return " to ".join(signed(end, percent) for end in ends)


def above(value: float, other: float, percent: bool) -> str:
    """Return how much better a value is than another, as a phrase: "3.1 points above"."""
    if percent:
        return f"{(value - other) * 100:.1f} points above"
    return f"{other / value:.1f} times less than" if value > 0 else "less than"


def plus(value: float | None, form: str = "%.3g") -> str:
    """Format a number with a true minus sign."""
    return NONE if value is None else (form % value).replace("-", "−")


def signed(value: float | None, percent: bool) -> str:
    if value is None:
        return NONE
    return plus(value * 100, "%+.2f") if percent else plus(value, "%+.3g")


def p_value(value: float | None) -> str:
    """Format the p of a test; never 0."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(value: float | None) -> str:
    return NONE if value is None else "0" if value == 0 else f"{value * 100:.2g} %"


def percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def level(value: float | None, metric: str) -> str:
    """Format a target's value in the unit of its metric."""
    if value is None:
        return NONE
    return f"{value * 100:.3g} %" if metric == "accuracy" else f"{value:.3g}"


def tasks(value: float | None, otherwise: str = NONE) -> str:
    """Format a number of tasks, always rounded up: with fewer the cost does not yet break even."""
    if value is None or value == math.inf:
        return otherwise
    return f"{math.ceil(value):,}" if value < 1e6 else operations(value)


def interval(ends: Sequence[float | None] | None) -> str:
    """Format the ends of an interval of a number of tasks."""
    if ends is None:
        return NONE
    low, high = (tasks(end, "never") for end in ends)
    return low if low == high else f"{low} to {high}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def gibibytes(value: float | None) -> str:
    return f"{value / 2**30:.2g} GiB" if value else NONE


def kilojoules(value: float | None) -> str:
    return NONE if value is None else f"{value / 1000:.3g} kJ"


def word(value: Any) -> str:
    """Format the value of a parameter."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
