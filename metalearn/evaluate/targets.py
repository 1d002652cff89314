"""Tasks that reach a target: which, when, and at what cost.

Letters as everywhere: E tasks, P points of a curve, S training seeds. A task that does not reach
the target is never dropped: its cost is divided among the tasks that do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.random_effects import LEVEL, standard_error
from metalearn.evaluate.statistics.fieller import PRECISION, Costs, Extra, Stretch
from metalearn.evaluate.statistics.students_t import t_quantile

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROUNDING = 1e-6  # scores are stored in 32 bits: 19 of 25 right is 0.75999999


class Reached(NamedTuple):
    """Which tasks reached a target, and what each cost."""

    solved: Bools  # [...]
    cost: Array  # [...]


class Share(NamedTuple):
    """A step function: the fraction of tasks that reached the target at a cost <= `cost`."""

    cost: Array  # [n], rising; begins at 0
    share: Array  # [n]


def reaches(scores: ArrayLike, target: float, *, higher: bool) -> Bools:
    """Return which scores are at least the target, or at most it for a loss; finite ones only."""
    values = np.asarray(scores, np.float64)
    margin = ROUNDING * max(1.0, abs(target))
    good = values >= target - margin if higher else values <= target + margin
    return np.asarray(np.isfinite(values) & good)


def at_step(scores: ArrayLike, cost: float, target: float, *, higher: bool) -> Reached:
    """Return tasks stopped at a step that was chosen in advance: scores [...] there -> [...].

    Every task costs the same, whether it is solved or not."""
    solved = reaches(scores, target, higher=higher)
    return Reached(solved, np.full(solved.shape, float(cost)))


def admissible_point(steps: Sequence[int], point: int, *, starts_at_chance: bool) -> int:
    """Return the point of a curve at which tasks are evaluated: `point`, or the first with a step.

    A method that has not seen the support set at step 0 solves tasks by chance there, at no
    cost."""
    later_points = [index for index, step in enumerate(steps) if step > 0]
    return max(point, later_points[0]) if starts_at_chance and later_points else point


def first_reached(
    scores: ArrayLike, target: float, *, higher: bool, first: int = 0
) -> NDArray[np.int64]:
    """Return the first point from which all later points reach the target: [..., P] -> [...].

    P if there is none.

    A task that reaches the target and loses it again has not reached it. Points before `first` do
    not count."""
    good = reaches(scores, target, higher=higher)
    tail = np.logical_and.accumulate(good[..., ::-1], -1).sum(-1)  # from the last point backwards
    point = np.maximum(good.shape[-1] - tail, min(first, good.shape[-1] - 1))
    return np.asarray(np.where(tail > 0, point, good.shape[-1]), np.int64)


def reach(
    scores: ArrayLike, costs: ArrayLike, target: float, *, higher: bool, first: int = 0
) -> Reached:
    """Return the cost of each task up to its target: scores [..., P], cost [P] -> [...].

    An unsolved task costs the whole curve: that is the cap. The cost is a lower bound, for
    someone who knows from the query labels when to stop; break-even counts use `at_step`."""
    curve_cost = np.asarray(costs, np.float64)
    point = first_reached(scores, target, higher=higher, first=first)
    return Reached(point < curve_cost.size, curve_cost[np.minimum(point, curve_cost.size - 1)])


def cost_per_solved(reached: Reached) -> float | None:
    """Return all cost, failed tasks included, over the tasks solved; None if no task was solved.

    This is the expected cost of one success (ERT, Hansen et al. 2009, INRIA report RR-6829,
    section 5)."""
    solved = int(reached.solved.sum())
    return float(reached.cost.sum() / solved) if solved else None


def share_interval(solved: Bools) -> tuple[float, float, float]:
    """Return the fraction of tasks solved, and its 95 % interval over new seeds and tasks.

    [S, E] -> 3 numbers. All p with |fraction - p| <= t sqrt(p (1 - p) / n) (Wilson 1927, JASA
    22(158), p. 209): the variance is that at the limit, so a fraction of 0 or 1 has a width, and no
    limit is beyond them. A table with few failures does not show whether all seeds fail on the same
    tasks. The interval is therefore at least as wide as with two tasks more, of which all seeds
    solve one and none the other: without a failure n is about the number of tasks, whatever the
    number of seeds."""
    seeds, tasks = solved.shape
    fraction = float(solved.mean())
    extended = np.concatenate([solved, np.tile([False, True], (seeds, 1))], 1)
    t2_over_n = max(_t2_over_n(solved, 0.5), _t2_over_n(extended, 0.0) * (tasks + 2) / tasks)
    center = (fraction + t2_over_n / 2) / (1 + t2_over_n)
    half = math.sqrt(t2_over_n * fraction * (1 - fraction) + t2_over_n**2 / 4) / (1 + t2_over_n)
    return fraction, max(0.0, center - half), min(1.0, center + half)


def _t2_over_n(solved: Bools, correction: float) -> float:
    """Return t^2 / n for the effective number n of tasks in a table [S, E].

    n is p (1 - p) over the variance of the fraction p solved (after Korn & Graubard 1998, Survey
    Methodology 24(2)), with p (1 - p) = (k + c) (m - k + c) / (m + 2 c)^2 for k of m = S E and the
    correction c, and at most m. There seeds and tasks show no variation beyond chance, and t has
    m - 1 degrees of freedom."""
    size, count = solved.size, int(solved.sum())
    effective_size, freedom = float(size), size - 1.0
    error, error_freedom = (float(part) for part in standard_error(solved.astype(np.float64)))
    chance = (count + correction) * (size - count + correction) / (size + 2 * correction) ** 2
    if error**2 * size > chance:
        effective_size, freedom = chance / error**2, error_freedom
    return float(t_quantile((1 + LEVEL) / 2, freedom)) ** 2 / effective_size


def shares_of_solved(solved: Bools) -> Costs:
    """Return the fraction of tasks solved as a mean of [S, E], with the limits of its interval.

    There are no costs before the first task."""
    fraction, low, high = share_interval(solved)
    shares = solved.astype(np.float64)
    stretch, extra = _widen(solved, 1.0, fraction - low, high - fraction)
    return Costs(np.zeros(len(solved)), shares, shares, stretch, extra)


def costs_of_solved(up_front: Array, reached: Reached) -> Costs:
    """Return the cost per solved task as a mean of [S, E]: up-front cost [S] -> Costs.

    That cost is the ratio r of all cost to all solved tasks; each task enters with r + (cost - r
    solved) / fraction, whose mean is r and whose variance is that of r to first order (Cochran
    1977, Sampling Techniques, section 2.11). The part of failures, r (fraction - solved) /
    fraction, is stretched to the limits of the fraction; the variation of cost is not. If all are
    solved, that part does not vary, and its limits enter as a variance of their own."""
    solved = reached.solved.astype(np.float64)
    fraction, low, high = share_interval(reached.solved)
    per_solved = float(reached.cost.mean()) / fraction
    per_task = per_solved + (reached.cost - per_solved * solved) / fraction
    failures = per_solved * (fraction - solved) / fraction
    distances = per_solved * (1 - fraction / high), per_solved * (fraction / low - 1)
    stretch, extra = _widen(reached.solved, per_solved / fraction, *distances)
    return Costs(up_front, per_task, failures, stretch, extra)


def _widen(
    solved: Bools, unit: float, below: float, above: float
) -> tuple[Stretch, tuple[Extra, ...]]:
    """Return what gives a mean of `unit` times the tasks solved limits at these distances.

    They are relative to its symmetric interval, or variances if nothing varies."""
    error, freedom = (float(part) for part in standard_error(solved.astype(np.float64)))
    varies = error > PRECISION
    freedom = freedom if varies else max(1.0, solved.shape[1] - 1.0)
    t = float(t_quantile((1 + LEVEL) / 2, freedom))
    if varies:
        half = t * error * unit
        return (Stretch(below / half, above / half) if half else Stretch()), ()
    return Stretch(), (Extra((below / t) ** 2, (above / t) ** 2, freedom),)


def share_by_cost(reached: Reached) -> Share:
    """Return the fraction of all tasks that reached the target by each cost.

    This is the empirical distribution function: a task that is unsolved at the end of its curve
    stays in the denominator at every cost, and the last value is the fraction of tasks solved.
    Such tasks are not censored (Kaplan & Meier 1958): the ends of the curves differ between seeds
    with other seconds per step, and unsolved tasks of a fast seed would leave the denominator
    before the last steps of a slow one. Without tasks the fraction is 0."""
    solved, cost = reached.solved.ravel(), reached.cost.ravel()
    if not cost.size:
        return Share(np.zeros(1), np.zeros(1))
    costs = np.unique(cost)  # of unsolved tasks, too: the curve continues to the last cap
    counts = np.searchsorted(np.sort(cost[solved]), costs, side="right")
    return Share(np.concatenate([[0.0], costs]), np.concatenate([[0.0], counts / cost.size]))


def median_cost(curve: Share) -> float | None:
    """Return the cost by which half of the tasks reached the target; None if fewer do."""
    enough = np.flatnonzero(curve.share >= 0.5)
    return float(curve.cost[enough[0]]) if enough.size else None


def least_level(chance: float) -> float:
    """Return the least accuracy that counts as solved: what a random guess seldom reaches.

    It is twice chance; for 2 classes, where that is 1, halfway between chance and 1."""
    return min(2 * chance, (1 + chance) / 2)


def from_validation(best: float, *, higher: bool, share: float = 0.9) -> float:
    """Return the target for a family of tasks: 90 % of the best mean validation score.

    For a loss, the best over 0.9.

    It is chosen before any test task is seen. Raises ValueError if the score is not finite."""
    if not math.isfinite(best):
        raise ValueError(f"a target needs a finite validation score, not {best}")
    return best * share if higher else best / share
