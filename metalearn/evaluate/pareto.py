"""The Pareto front: methods that no other beats in both cost and score."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(
    costs: Sequence[float | None], scores: Sequence[float | None], *, higher: bool
) -> list[bool]:
    """Whether no other point costs at most as much, scores at least as well, and is better in one.

    A point without cost or score is not on the front, and keeps no other point off it.
    """
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
