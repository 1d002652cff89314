"""After how many tasks two total costs are equal: Fieller's interval for U + n c = 0.

`U` is the difference a - b of the costs before the first task, `c` that of the costs of one task.
The number of tasks is a ratio of two estimates, n = -U / c; its interval is every n at which the
estimated difference U + n c is not distinguished from 0 by its t interval (Fieller 1954, Journal of
the Royal Statistical Society B 16(2), section 2). At each n, U + n c is a mean over seeds and tasks
with the variance of random_effects.py, so the seeds' covariance of U and c is in it.

Seconds per task are medians of rounds of timing. Their variance, on the degrees of freedom of the
rounds, is one more part of the variance of c (`Costs.timed`).

The part of a cost that is due to failed tasks has an interval that is not symmetric, and enters
with a `Stretch`: the lower limit of a - b is made of the lower limit of a and the upper one of b
(MOVER; Zou & Donner 2008, Statistics in Medicine 27(10), section 2). A variance that the tables of
seeds and tasks do not show enters as `Extra`.

Letters: S seeds, E tasks, N numbers of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.random_effects import LEVEL, bounded_sum, mean_squares, satterthwaite
from metalearn.evaluate.statistics.students_t import t_quantile

Array = NDArray[np.float64]
PRECISION = 1e-9  # relative: a smaller difference of two costs is rounding
DECADES, POINTS = 9, 721  # the numbers of tasks that are tried, around the estimate


class Stretch(NamedTuple):
    """Distance of both limits of a 95 % interval, relative to the symmetric interval's."""

    below: float = 1.0
    above: float = 1.0


class Extra(NamedTuple):
    """A variance of the cost per task that its table does not show, for both of its limits."""

    below: float
    above: float
    freedom: float


class Costs(NamedTuple):
    """Costs of one method: before the first task, and per task."""

    up_front: Array  # [S]
    per_task: Array  # [S, E], its mean is the cost of one solved task
    failures: Array | float = 0.0  # [S, E], the part of per_task that is due to failed tasks
    stretch: Stretch = Stretch()  # of the interval of that part
    extra: tuple[Extra, ...] = ()

    def timed(self, relative_variances: Sequence[tuple[float, float]]) -> Costs:
        """Return the costs with the variance of timing, given relative to the cost of a task."""
        square = float(self.per_task.mean()) ** 2
        variances = [(square * variance, freedom) for variance, freedom in relative_variances]
        timing = [Extra(variance, variance, freedom) for variance, freedom in variances]
        return self._replace(extra=(*self.extra, *timing))


class Limits(NamedTuple):
    """A difference with its 95 % interval, and how much of it may be rounding: [N] each."""

    value: Array
    low: Array
    high: Array
    rounding: Array

    @property
    def holds_zero(self) -> NDArray[np.bool_]:
        return np.asarray((self.low <= self.rounding) & (self.high >= -self.rounding))

    def one(self) -> tuple[float, float, float, float]:
        """Return the first element of each as a float."""
        value, low, high, rounding = (float(part[0]) for part in self)
        return value, low, high, rounding


class Spread(NamedTuple):
    """Variance of `start + n slope` as a function of n, for one of its two limits."""

    seeds: tuple[tuple[Array, float], ...]  # (covariance [2, 2] of start and slope, freedom)
    tasks: tuple[tuple[float, float], ...]  # (variance of the slope over tasks, freedom)
    extra: tuple[tuple[float, float], ...] = ()  # (variance of the slope, freedom)

    def half_width(self, weights: Array, level: float = LEVEL) -> Array:
        """Distance of the limit from the estimate: weights [2, N] of start and slope -> [N]."""
        parts: list[tuple[ArrayLike, float]] = [
            (np.einsum("in,ij,jn->n", weights, covariance, weights), freedom)
            for covariance, freedom in self.seeds
        ]
        over_seeds = np.asarray(sum(np.asarray(variance) for variance, _ in parts))
        over_tasks = [(weights[1] ** 2 * variance, freedom) for variance, freedom in self.tasks]
        extra = [(weights[1] ** 2 * variance, freedom) for variance, freedom in self.extra]
        variance = bounded_sum([over_seeds, *(task_variance for task_variance, _ in over_tasks)])
        variance = np.asarray(variance + sum(part for part, _ in extra))
        freedom = satterthwaite(variance, [*parts, *over_tasks, *extra])
        return np.asarray(t_quantile((1 + level) / 2, freedom) * np.sqrt(variance))


class Line(NamedTuple):
    """The difference `start + n slope` of two total costs, with the variances of its interval."""

    start: float
    slope: float
    size: tuple[float, float]  # |U_a| + |U_b|, |c_a| + |c_b|: what rounding is relative to
    below: Spread
    above: Spread

    def at(self, tasks: ArrayLike, level: float = LEVEL) -> Limits:
        """Return the difference after n tasks, with limits of this level: [N] -> [N] each.

        An infinite n gives the slope alone."""
        n = np.asarray(tasks, np.float64)
        endless = np.isinf(n)
        weights = np.stack([np.where(endless, 0.0, 1.0), np.where(endless, 1.0, n)])  # [2, N]
        value = self.start * weights[0] + self.slope * weights[1]
        below, above = (part.half_width(weights, level) for part in (self.below, self.above))
        rounding = PRECISION * (np.asarray(self.size) @ weights)
        return Limits(value, value - below, value + above, rounding)

    def sign(self, tasks: float, level: float = LEVEL) -> int:
        """Return 1 or -1 if the difference after n tasks is distinguished from 0, else 0."""
        limits = self.at([tasks], level)
        return 0 if limits.holds_zero[0] else int(math.copysign(1, limits.value[0]))


def difference(a: Costs, b: Costs, *, paired: bool) -> Line:
    """Return the line of a - b; both are tested on the same tasks.

    `paired`: seed number s of both shares something, such as the network that it starts from.
    Otherwise the seeds of a and b are independent, and may differ in number."""
    start = float(a.up_front.mean() - b.up_front.mean())
    slope = float((a.per_task.mean(0) - b.per_task.mean(0)).mean())
    size = [
        float(np.abs(first.mean()) + np.abs(second.mean())) for first, second in zip(a[:2], b[:2])
    ]
    below = _spread(a, b, paired, lower=True)
    symmetric = a.stretch == b.stretch == Stretch() and not (a.extra or b.extra)
    above = below if symmetric else _spread(a, b, paired, lower=False)
    return Line(start, slope, (size[0], size[1]), below, above)


def _spread(a: Costs, b: Costs, paired: bool, *, lower: bool) -> Spread:
    """Return the spread of the lower or upper limit of a - b, with failures stretched."""
    limits = ((a, lower), (b, not lower))
    extra = [
        (part.below if is_lower else part.above, part.freedom)
        for side, is_lower in limits
        for part in side.extra
    ]
    a, b = (_stretched(side, lower=is_lower) for side, is_lower in limits)
    gap = a.per_task.mean(0) - b.per_task.mean(0)
    sides = [Costs(a.up_front - b.up_front, a.per_task - b.per_task)] if paired else [a, b]
    seeds, tasks = [], [(float(gap.var(ddof=1)) / len(gap), len(gap) - 1.0)]
    for side in sides:
        count, width = side.per_task.shape
        means = np.stack([side.up_front, side.per_task.mean(1)])
        seeds.append((np.cov(means, ddof=1) / count, count - 1.0))
        residual = float(mean_squares(side.per_task).residual)
        tasks.append((-residual / (count * width), (count - 1.0) * (width - 1.0)))
    return Spread(tuple(seeds), tuple(tasks), tuple(extra))


def _stretched(costs: Costs, *, lower: bool) -> Costs:
    """Return costs whose symmetric interval has the distance of the lower or upper limit."""
    factor = costs.stretch.below if lower else costs.stretch.above
    return Costs(costs.up_front, costs.per_task + (factor - 1) * costs.failures)


def root(line: Line) -> float:
    """Return the n at which the difference is 0; infinite if the costs per task are equal.

    Negative if that was before the first task."""
    start, slope = (
        0.0 if abs(value) <= PRECISION * size else value
        for value, size in zip((line.start, line.slope), line.size)
    )
    return -start / slope if slope else math.inf


def root_interval(line: Line) -> tuple[float, float]:
    """Return the smallest and largest n >= 0 at which the difference may be 0; infinite if none.

    The set is found on a grid of numbers of tasks around the estimate, then on finer ones at both
    ends. If it has a gap, the interval includes the gap."""
    middle = abs(root(line))
    if not 0 < middle < math.inf:
        middle = 1.0
    grid = np.concatenate([[0.0], middle * np.logspace(-DECADES, DECADES, POINTS), [math.inf]])
    zeros = np.flatnonzero(line.at(grid).holds_zero)
    if zeros.size == 0 or math.isinf(grid[zeros[0]]):
        return math.inf, math.inf
    low, high = float(grid[zeros[0]]), float(grid[zeros[-1]])
    if low > 0:
        low = _edge(line, float(grid[zeros[0] - 1]), low)
    if high < grid[-2]:
        high = _edge(line, float(grid[zeros[-1] + 1]), high)
    return low, high


def _edge(line: Line, outside: float, inside: float) -> float:
    """Return the last number of tasks, from `inside` to `outside`, whose difference may be 0."""
    for _ in range(3):
        between = np.linspace(outside, inside, 65)
        first = int(np.flatnonzero(line.at(between).holds_zero)[0])
        outside, inside = float(between[max(first - 1, 0)]), float(between[first])
    return inside
