"""The Pareto front: methods that no other beats in both cost and score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def front(
    costs: Sequence[float | None], scores: Sequence[float | None], *, higher: bool
) -> list[bool]:
    """Whether no other point costs at most as much, scores at least as well, and is better in one.

    A point without cost or score is not on the front, and keeps no other point off it."""
    sign = 1.0 if higher else -1.0
    points = [_point(cost, score, sign) for cost, score in zip(costs, scores, strict=True)]
    known = [point for point in points if point is not None]
    return [mine is not None and not any(_beats(other, mine) for other in known) for mine in points]


def _point(cost: float | None, score: float | None, sign: float) -> tuple[float, float] | None:
    if cost is None or score is None or not (math.isfinite(cost) and math.isfinite(score)):
        return None
    return cost, sign * score


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


Place = Literal["on", "off", "open"]
Ends = tuple[float, float]


def place_by_interval(
    cost: Ends | None, others: Sequence[tuple[Ends | None, Ends | None]]
) -> Place | None:
    """Whether a method is on the front, decided by intervals.

    Of its cost, and of each other method: its cost, and the difference of its score to this one's,
    above 0 where the other is better. `off` where another is surely no dearer and surely better;
    `on` where every other is surely dearer, or surely worse; else `open`. None for a method without
    cost. A method without cost or difference keeps no other off the front, as in `front`."""
    if cost is None:
        return None
    known = [(spent, apart) for spent, apart in others if spent is not None and apart is not None]
    if any(spent[1] <= cost[0] and apart[0] > 0 for spent, apart in known):
        return "off"
    sure = all(spent[0] > cost[1] or apart[1] < 0 for spent, apart in known)
    return "on" if sure else "open"
