"""Tasks that reach a target: when, at what cost, and what is said of those that never do.

Letters as everywhere: E tasks, P points of a curve; S training seeds. A task that does not reach
the target within its curve is censored there: it is never dropped, and what was spent on it is paid
by those that did."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Reached(NamedTuple):
    """When each task reached a target, or what was spent on it in vain."""

    solved: Bools  # [...]
    cost: Array  # [...], up to the target, or to the cap


class Share(NamedTuple):
    """A step function: the share of tasks that reached the target at a cost of at most `cost`."""

    cost: Array  # [n], rising; begins at 0
    share: Array  # [n]


def first_reached(scores: ArrayLike, target: float, *, higher: bool) -> NDArray[np.int64]:
    """The first point from which on every later point reaches the target: [..., P] -> [...]; P
    where there is none.

    A task that reaches the target and loses it again has not reached it. A score that is not finite
    does not."""
    values = np.asarray(scores, np.float64)
    good = np.isfinite(values) & ((values >= target) if higher else (values <= target))
    kept = np.logical_and.accumulate(good[..., ::-1], -1)  # from the last point backwards
    return np.asarray(values.shape[-1] - kept.sum(-1), np.int64)


def reach(scores: ArrayLike, costs: ArrayLike, target: float, *, higher: bool) -> Reached:
    """Cost of each task up to its target: scores [..., P] and the cost of a task up to each point
    [P] -> [...].

    An unsolved task costs what the whole curve does: that is the cap. The cost is that of somebody
    who knows when to stop, the same knowledge for every method.
    """
    place, spent = first_reached(scores, target, higher=higher), np.asarray(costs, np.float64)
    solved = place < spent.size
    return Reached(solved, spent[np.minimum(place, spent.size - 1)])


def cost_per_solved(found: Reached) -> float | None:
    """All cost, that of the failed tasks too, over the tasks solved; None where no task was.

    The expected cost of one success (ERT, Hansen et al. 2009, INRIA report RR-6829, section 5).
    """
    solved = int(found.solved.sum())
    return float(found.cost.sum() / solved) if solved else None


def kaplan_meier(found: Reached) -> Share:
    """Share of tasks that reached the target by each cost (Kaplan & Meier 1958, JASA 53(282),
    equation 2b).

    1 minus the product over the costs c at which some were solved of (1 - solved at c / not yet
    solved or lost at c). Tasks that never reach it leave the count at their cap. No tasks: the
    share is 0."""
    solved, cost = found.solved.ravel(), found.cost.ravel()
    places, shares, left = [0.0], [0.0], 1.0
    for place in np.unique(cost[solved]):
        at_risk = int((cost >= place).sum())
        left *= 1 - int((solved & (cost == place)).sum()) / at_risk
        places.append(float(place))
        shares.append(1 - left)
    if solved.size:
        places.append(max(float(cost.max()), places[-1]))
        shares.append(shares[-1])
    return Share(np.asarray(places), np.asarray(shares))


def share_at(curve: Share, budget: float) -> float:
    """The share of tasks that reached the target within a budget."""
    return (
        float(curve.share[np.searchsorted(curve.cost, budget, side="right") - 1])
        if budget >= 0
        else 0.0
    )


def median_cost(curve: Share) -> float | None:
    """The cost by which half of the tasks reached the target; None where fewer ever do."""
    enough = np.flatnonzero(curve.share >= 0.5)
    return float(curve.cost[enough[0]]) if enough.size else None


def restricted_mean(curve: Share, cap: float) -> float:
    """The mean of the smaller of a task's cost to the target and the cap: the area above the curve
    up to the cap.
    """
    inside = curve.cost < cap
    edges = np.append(curve.cost[inside], cap)
    return float(((1 - curve.share[inside]) * np.diff(edges)).sum())


def from_validation(best: float, *, higher: bool, share: float = 0.9) -> float:
    """The target that a family of tasks is held to: 90 % of the best method's mean score on
    validation tasks.

    Of a loss, the best over 0.9. Chosen before any test task is seen; ValueError where the score is
    not finite."""
    if not math.isfinite(best):
        raise ValueError(f"a target needs a finite validation score, not {best}")
    return best * share if higher else best / share
