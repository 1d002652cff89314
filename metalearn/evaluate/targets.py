"""Tasks that reach a target: which, when, and at what cost.

Letters as everywhere: E tasks, P points of a curve, S training seeds. A task that does not reach
the target is never dropped: its cost is divided among the tasks that do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.fieller import Costs, Stretch
from metalearn.evaluate.random_effects import LEVEL, standard_error
from metalearn.evaluate.students_t import t_quantile

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
    limit is beyond them. The effective n is (k + 1/2) (m - k + 1/2) / (m + 1)^2 over the variance
    of the fraction, k of m = S E being solved (after Korn & Graubard 1998, Survey Methodology
    24(2)), and at most m. There seeds and tasks show no variation beyond chance, and t has m - 1
    degrees of freedom."""
    size, solved_count = solved.size, int(solved.sum())
    fraction, effective_size, freedom = solved_count / size, float(size), size - 1.0
    error, error_freedom = (float(part) for part in standard_error(solved.astype(np.float64)))
    chance = (solved_count + 0.5) * (size - solved_count + 0.5) / (size + 1) ** 2
    if error**2 * size > chance:
        effective_size, freedom = chance / error**2, error_freedom
    t2_over_n = float(t_quantile((1 + LEVEL) / 2, freedom)) ** 2 / effective_size
    center = (fraction + t2_over_n / 2) / (1 + t2_over_n)
    half = math.sqrt(t2_over_n * fraction * (1 - fraction) + t2_over_n**2 / 4) / (1 + t2_over_n)
    return fraction, max(0.0, center - half), min(1.0, center + half)


def costs_of_solved(up_front: Array, reached: Reached) -> Costs:
    """Return the cost per solved task as a mean of [S, E]: up-front cost [S] -> Costs.

    That cost is the ratio r of all cost to all solved tasks; each task enters with r + (cost - r
    solved) / fraction, whose mean is r and whose variance is that of r to first order (Cochran
    1977, Sampling Techniques, section 2.11). The part of failures, r (fraction - solved) /
    fraction, is stretched to the limits of the fraction; the variation of cost is not. If all are
    solved, it has no width: equal costs then count as equal."""
    solved = reached.solved.astype(np.float64)
    fraction = float(solved.mean())
    per_solved = float(reached.cost.mean()) / fraction
    per_task = per_solved + (reached.cost - per_solved * solved) / fraction
    failures = per_solved * (fraction - solved) / fraction
    return Costs(up_front, per_task, failures, stretch_of_cost(reached.solved))


def stretch_of_cost(solved: Bools) -> Stretch:
    """Return distances of 1 / p at the limits of the fraction p, over the symmetric ones.

    [S, E] -> Stretch; 1 if nothing varies."""
    fraction, low, high = share_interval(solved)
    error, freedom = (float(part) for part in standard_error(solved.astype(np.float64)))
    if not error:
        return Stretch()
    half = float(t_quantile((1 + LEVEL) / 2, freedom)) * error / fraction
    return Stretch((1 - fraction / high) / half, (fraction / low - 1) / half)


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


def from_validation(best: float, *, higher: bool, share: float = 0.9) -> float:
    """Return the target for a family of tasks: 90 % of the best mean validation score.

    For a loss, the best over 0.9.

    It is chosen before any test task is seen. Raises ValueError if the score is not finite."""
    if not math.isfinite(best):
        raise ValueError(f"a target needs a finite validation score, not {best}")
    return best * share if higher else best / share
