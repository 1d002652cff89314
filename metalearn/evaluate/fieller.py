"""After how many tasks two total costs are equal: Fieller's interval for U + n c = 0.

`U` is the difference a - b of the costs before the first task, `c` that of the costs of one task.
The number of tasks is a ratio of two estimates, n = -U / c; its interval is every n at which the
estimated difference U + n c is not distinguished from 0 by its t interval (Fieller 1954, Journal of
the Royal Statistical Society B 16(2), section 2). At each n, U + n c is a mean over seeds and tasks
with the variance of random_effects.py, so the seeds' covariance of U and c is in it.

Letters: S seeds, E tasks, N numbers of tasks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.random_effects import LEVEL, bounded_sum, mean_squares, satterthwaite
from metalearn.evaluate.students_t import t_quantile

Array = NDArray[np.float64]
PRECISION = 1e-9  # relative: a smaller difference of two costs is rounding
DECADES, POINTS = 9, 721  # the numbers of tasks that are tried, around the estimate


class Costs(NamedTuple):
    """One method: what it spends before the first task, and on each."""

    up_front: Array  # [S]
    per_task: Array  # [S, E], its mean is the cost of one solved task


class Line(NamedTuple):
    """The difference `start + n slope` of two total costs, and its variance as a function of n."""

    start: float
    slope: float
    size: tuple[float, float]  # |U_a| + |U_b|, |c_a| + |c_b|: what rounding is relative to
    seeds: tuple[tuple[Array, float], ...]  # (covariance [2, 2] of start and slope, freedom)
    tasks: tuple[tuple[float, float], ...]  # (variance of the slope over tasks, freedom)

    def at(self, tasks: ArrayLike) -> tuple[Array, Array, Array]:
        """(difference, half width of its 95 % interval, rounding) after n tasks: [N] -> [N] each.

        An infinite n stands for the slope alone."""
        n = np.asarray(tasks, np.float64)
        endless = np.isinf(n)
        weights = np.stack([np.where(endless, 0.0, 1.0), np.where(endless, 1.0, n)])  # [2, N]
        parts: list[tuple[ArrayLike, float]] = [
            (np.einsum("in,ij,jn->n", weights, covariance, weights), freedom)
            for covariance, freedom in self.seeds
        ]
        over_seeds = np.asarray(sum(np.asarray(variance) for variance, _ in parts))
        over_tasks = [(weights[1] ** 2 * variance, freedom) for variance, freedom in self.tasks]
        variance = bounded_sum([over_seeds, *(each for each, _ in over_tasks)])
        freedom = satterthwaite(variance, [*parts, *over_tasks])
        half = t_quantile((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
        rounding = PRECISION * (np.asarray(self.size) @ weights)
        return self.start * weights[0] + self.slope * weights[1], half, rounding

    def sign(self, tasks: float) -> int:
        """1 or -1 where the difference after n tasks is distinguished from 0, else 0."""
        value, half, rounding = (float(part[0]) for part in self.at([tasks]))
        return 0 if abs(value) <= half + rounding else int(math.copysign(1, value))


def difference(a: Costs, b: Costs, *, paired: bool) -> Line:
    """The line of a - b; both meet the same tasks.

    `paired`: seed number s of both shares something, such as the network that it starts from.
    Otherwise the seeds of a and b are independent, and may differ in number."""
    gap = a.per_task.mean(0) - b.per_task.mean(0)
    start = float(a.up_front.mean() - b.up_front.mean())
    sides = [Costs(a.up_front - b.up_front, a.per_task - b.per_task)] if paired else [a, b]
    seeds, tasks = [], [(float(gap.var(ddof=1)) / len(gap), len(gap) - 1.0)]
    for side in sides:
        count, width = side.per_task.shape
        both = np.stack([side.up_front, side.per_task.mean(1)])
        seeds.append((np.cov(both, ddof=1) / count, count - 1.0))
        residual = float(mean_squares(side.per_task).residual)
        tasks.append((-residual / (count * width), (count - 1.0) * (width - 1.0)))
    size = [float(np.abs(one.mean()) + np.abs(other.mean())) for one, other in zip(a, b)]
    return Line(start, float(gap.mean()), (size[0], size[1]), tuple(seeds), tuple(tasks))


def root(line: Line) -> float:
    """The n at which the difference is 0; infinite where the costs of one task are equal.

    Negative where that was before the first task."""
    start, slope = (
        0.0 if abs(value) <= PRECISION * size else value
        for value, size in zip((line.start, line.slope), line.size)
    )
    return -start / slope if slope else math.inf


def root_interval(line: Line) -> tuple[float, float]:
    """Smallest and largest n >= 0 at which the difference may be 0; both infinite where none is.

    The set is found on a grid of numbers of tasks around the estimate, then on finer ones at both
    ends. Where it has a gap, the interval bridges it."""
    middle = abs(root(line))
    if not 0 < middle < math.inf:
        middle = 1.0
    grid = np.concatenate([[0.0], middle * np.logspace(-DECADES, DECADES, POINTS), [math.inf]])
    places = np.flatnonzero(_not_apart(line, grid))
    if places.size == 0 or math.isinf(grid[places[0]]):
        return math.inf, math.inf
    low, high = float(grid[places[0]]), float(grid[places[-1]])
    if low > 0:
        low = _edge(line, float(grid[places[0] - 1]), low)
    if high < grid[-2]:
        high = _edge(line, float(grid[places[-1] + 1]), high)
    return low, high


def _not_apart(line: Line, tasks: ArrayLike) -> NDArray[np.bool_]:
    value, half, rounding = line.at(tasks)
    return np.asarray(np.abs(value) <= half + rounding)


def _edge(line: Line, outside: float, inside: float) -> float:
    """The last number of tasks, from `inside` to `outside`, at which the difference may be 0."""
    for _ in range(3):
        between = np.linspace(outside, inside, 65)
        place = int(np.flatnonzero(_not_apart(line, between))[0])
        outside, inside = float(between[max(place - 1, 0)]), float(between[place])
    return inside
