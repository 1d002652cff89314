"""Two methods on the same tasks, and whether their costs can be compared.

They can if both solve at least half of their tasks, and about equally many: costs of different
accuracies are not compared. With enough seeds each of these is decided by a 95 % interval. S seeds,
E tasks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.statistics.fieller import PRECISION, difference
from metalearn.evaluate.targets import (
    Reached,
    cost_per_solved,
    share_interval,
    shares_of_solved,
)

Array = NDArray[np.float64]
LEAST_SOLVED = 0.5  # fraction of tasks that both methods must solve
LARGEST_GAP = 0.1  # between the fractions: costs of different accuracies are not compared


class MethodCosts(NamedTuple):
    """Costs of one method; None for a cost that was not measured."""

    label: str
    seeds: tuple[int, ...]  # [S]
    up_front: Array | None  # [S]
    found: Reached | None  # solved and cost [S, E]
    origin: str = ""  # the trained network that it starts from; its own label if it has none
    # of seconds: (relative variance of the cost per task by timing, degrees of freedom)
    timing: tuple[tuple[float, float], ...] = ()


class Pair(NamedTuple):
    """Two methods on the same tasks, everything measured."""

    a: MethodCosts
    b: MethodCosts
    paired: bool  # seed by seed
    shortened: tuple[str, ...] = ()  # labels that were tested on more tasks than these


def decide_comparable(pair: Pair) -> tuple[Literal["not_reached", "undecided"], str]:
    """Return ("undecided", "") if both solve enough tasks and about equally many, by intervals;
    else a verdict and its reason."""
    doubts: list[str] = []
    for method in pair[:2]:
        fraction, low, high = share_interval(reached(method).solved)
        size = _percent(fraction, low, high)
        text = f"{method.label} solved {size} of {_name_tasks(pair, method)}"
        if high < LEAST_SOLVED - PRECISION:
            return "not_reached", f"{text}, fewer than {LEAST_SOLVED:.0%}"
        if low < LEAST_SOLVED - PRECISION:
            doubts.append(f"{text}, possibly fewer than {LEAST_SOLVED:.0%}")
    value, low, high = _gap(pair)
    low_end, high_end = (f"{100 * min(1.0, max(-1.0, end)):.0f}" for end in (low, high))
    text = _describe_gap(pair, value, f"{_points(value)} ({low_end} to {high_end})")
    if low > LARGEST_GAP + PRECISION:
        return "not_reached", f"{text}: no common level"
    if max(-low, high) > LARGEST_GAP + PRECISION:
        doubts.append(f"{text}, possibly above {_points(LARGEST_GAP)}")
    return "undecided", "; ".join(doubts)


def _gap(pair: Pair) -> tuple[float, float, float]:
    """Return the difference of the fractions solved, a - b, and the limits of its absolute value.

    The lower limit is negative if the other fraction may be the larger one."""
    fractions = [shares_of_solved(reached(method).solved) for method in pair[:2]]
    value, low, high, _ = difference(*fractions, paired=pair.paired).at([math.inf]).one()
    return (value, low, high) if value >= 0 else (value, -high, -low)


def _describe_gap(pair: Pair, value: float, size: str) -> str:
    """Return which of the two solved the larger fraction; `value` is a - b, `size` how much."""
    more, fewer = (pair.a, pair.b) if value >= 0 else (pair.b, pair.a)
    tasks = f"{_name_tasks(pair, more, fewer)}," if pair.shortened else "tasks"
    return f"{more.label} solved a larger fraction of {tasks} than {fewer.label}, by {size}"


def _name_tasks(pair: Pair, *methods: MethodCosts) -> str:
    """Return "its tasks", or the first ones if a method was tested on more than the pair."""
    if not any(method.label in pair.shortened for method in methods):
        return "its tasks"
    count = reached(pair.a).cost.shape[1]
    first = f"the first {count} tasks" if count != 1 else "the first task"
    return f"{first}, which both were tested on"


def _points(difference: float) -> str:
    """Format the size of a difference of fractions."""
    text = f"{100 * abs(difference):.0f}"
    return f"{text} point{'s' * (text != '1')}"


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.0%} ({max(-1.0, low):.0%} to {min(1.0, high):.0%})"


def describe_incomparable(pair: Pair) -> str:
    """Return why these point estimates allow no count, after "; "; empty if they do.

    Names the methods that solved too few of these tasks; if there are none, a gap between the
    fractions that is too large."""
    solved = [float(reached(method).solved.mean()) for method in pair[:2]]
    unsolved = "".join(
        f"; {method.label} solved {fraction:.0%} of {_name_tasks(pair, method)}, "
        f"fewer than {LEAST_SOLVED:.0%}"
        for method, fraction in zip(pair[:2], solved)
        if fraction < LEAST_SOLVED - PRECISION
    )
    gap = solved[0] - solved[1]
    if unsolved or abs(gap) <= LARGEST_GAP + PRECISION:
        return unsolved
    return f"; {_describe_gap(pair, gap, _points(gap))}: no common level"


def up_front(method: MethodCosts) -> Array:
    assert method.up_front is not None
    return method.up_front


def reached(method: MethodCosts) -> Reached:
    assert method.found is not None
    return method.found


def cost_per_task(method: MethodCosts) -> float:
    """Return the cost per solved task; infinite if none was solved."""
    cost = cost_per_solved(reached(method))
    return math.inf if cost is None else cost


def seed_count(method: MethodCosts) -> int:
    return len(method.seeds)


def origin(method: MethodCosts) -> str:
    return method.origin or method.label
