"""The Pareto front: methods that no other method dominates in cost and score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def front(
    costs: Sequence[float | None], scores: Sequence[float | None], *, higher: bool
) -> list[bool]:
    """Return whether no other point costs at most as much, scores as well, and is better in one.

    A point without cost or score is not on the front, and dominates no other point."""
    sign = 1.0 if higher else -1.0
    points = [_point(cost, score, sign) for cost, score in zip(costs, scores, strict=True)]
    complete = [point for point in points if point is not None]
    return [
        point is not None and not any(_beats(other, point) for other in complete)
        for point in points
    ]


def _point(cost: float | None, score: float | None, sign: float) -> tuple[float, float] | None:
    if cost is None or score is None or not (math.isfinite(cost) and math.isfinite(score)):
        return None
    return cost, sign * score


def _beats(point: tuple[float, float], other: tuple[float, float]) -> bool:
    return point[0] <= other[0] and point[1] >= other[1] and point != other


Place = Literal["on", "off", "open"]
Ends = tuple[float, float]


def place_by_interval(
    cost: Ends | None, others: Sequence[tuple[Ends | None, Ends | None]]
) -> Place | None:
    """Return whether a method is on the front, decided by intervals.

    They are those of its cost, and for each other method of the cost, and of the difference of its
    score to this one's, above 0 if the other is better. `off` if another surely costs at most as
    much and is surely better; `on` if every other is surely more expensive or surely worse; else
    `open`. None for a method without cost. A cost or difference that is not known is None, and
    surely nothing."""
    if cost is None:
        return None
    unknown = -math.inf, math.inf
    known = [(cost_ends or unknown, difference or unknown) for cost_ends, difference in others]
    if any(cost_ends[1] <= cost[0] and difference[0] > 0 for cost_ends, difference in known):
        return "off"
    is_on = all(cost_ends[0] > cost[1] or difference[1] < 0 for cost_ends, difference in known)
    return "on" if is_on else "open"
