"""Means over training seeds and test tasks when both are random: S seeds, E tasks.

The model is y[s, e] = mean + seed[s] + task[e] + residual[s, e]. All seeds are tested on the same
tasks, so the two effects are crossed, and the mean of the table has the variance

    (MS_seed + MS_task - MS_residual) / (S E)

in the mean squares of a two-way analysis of variance (Searle, Casella & McCulloch 1992, Variance
Components, section 4.5), here at least the larger of MS_seed and MS_task over S E. Its degrees of
freedom are Satterthwaite's (1946, Biometrics Bulletin 2(6), equation 17). An interval holds for new
seeds and new tasks; with fewer than LEAST_SEEDS, for new tasks of these trained networks alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.statistics.students_t import t_quantile, two_sided_p

Array = NDArray[np.float64]
# For a verdict, and for an interval over new seeds: over 2 it covers 89 % where they differ.
LEAST_SEEDS = 3
LEVEL = 0.95


class MeanSquares(NamedTuple):
    """Mean squares of a two-way table, each an estimate of S E times a part of Var(mean)."""

    seeds: Array  # [...]
    tasks: Array  # [...]
    residual: Array  # [...]


class Estimate(NamedTuple):
    """A mean with its interval; None if it is not defined."""

    value: float | None
    ci95: tuple[float, float] | None
    freedom: float | None  # degrees of freedom of the interval
    p: float | None  # two-sided, of a mean of 0; None below LEAST_SEEDS
    per_seed: tuple[float, ...]  # [S]
    tasks: int
    undefined: int = 0  # scores that are not finite

    @property
    def seeds(self) -> int:
        return len(self.per_seed)

    @property
    def covers(self) -> str:
        """What the interval generalises to."""
        enough = self.seeds >= LEAST_SEEDS
        return "new seeds and tasks" if enough else "new tasks, these trained networks only"


def mean_squares(values: Array) -> MeanSquares:
    """[S, E, ...] with S, E >= 2 -> mean squares [...]."""
    seeds, tasks = values.shape[:2]
    seed_means, task_means, mean = values.mean(1), values.mean(0), values.mean((0, 1))
    residuals = values - seed_means[:, None] - task_means[None] + mean
    return MeanSquares(
        tasks * seed_means.var(0, ddof=1),
        seeds * task_means.var(0, ddof=1),
        np.asarray((residuals**2).sum((0, 1)) / ((seeds - 1) * (tasks - 1))),
    )


def satterthwaite(variance: Array, parts: Sequence[tuple[ArrayLike, float]]) -> Array:
    """Return the degrees of freedom of a sum of variances from (variance, degrees of freedom).

    `variance^2 / sum(part^2 / f)`, never below the smallest f, and infinite if all parts are 0.
    """
    spread = np.asarray(sum(np.asarray(part) ** 2 / freedom for part, freedom in parts))
    degrees = np.divide(variance**2, spread, out=np.full(variance.shape, np.inf), where=spread > 0)
    return np.asarray(np.maximum(degrees, min(freedom for _, freedom in parts)), np.float64)


def bounded_sum(parts: Sequence[Array]) -> Array:
    """Return the sum of estimated variances, some negated, and at least the largest of them."""
    table = np.stack(parts)
    return np.asarray(np.maximum(table.sum(0), table.max(0)), np.float64)


def standard_error(values: Array) -> tuple[Array, Array]:
    """Return (standard error [...], degrees of freedom [...]) of the mean of [S, E, ...]."""
    seeds, tasks = values.shape[:2]
    if min(seeds, tasks) == 1:
        line = values.mean(0 if seeds == 1 else 1)
        freedom = np.full(line.shape[1:], float(len(line) - 1))
        return line.std(0, ddof=1) / math.sqrt(len(line)), freedom
    squares = mean_squares(values)
    size = seeds * tasks
    parts = [
        (squares.seeds / size, seeds - 1.0),
        (squares.tasks / size, tasks - 1.0),
        (-squares.residual / size, (seeds - 1.0) * (tasks - 1.0)),
    ]
    variance = bounded_sum([part for part, _ in parts])
    return np.sqrt(variance), satterthwaite(variance, parts)


def _of_networks(table: Array) -> Array:
    """Return the mean over too few seeds, [1, E, ...], whose interval is over tasks alone."""
    return table.mean(0, keepdims=True) if len(table) < LEAST_SEEDS else table


def interval(values: ArrayLike) -> tuple[Array, Array]:
    """Return the 95 % interval of the mean over seeds and tasks: [S, E, ...] -> low, high [...].

    It is over tasks alone if there are fewer than LEAST_SEEDS seeds. NaN if a value is not finite,
    and for a single value."""
    with np.errstate(invalid="ignore"):
        table = _of_networks(np.asarray(values, np.float64))
    if table.shape[0] * table.shape[1] < 2:
        return np.full(table.shape[2:], np.nan), np.full(table.shape[2:], np.nan)
    with np.errstate(invalid="ignore"):
        error, freedom = standard_error(table)
        half = t_quantile((1 + LEVEL) / 2, freedom) * error
    return table.mean((0, 1)) - half, table.mean((0, 1)) + half


def estimate(values: ArrayLike) -> Estimate:
    """Return the mean over seeds and tasks, or of a paired difference: [S, E] -> Estimate.

    The interval is over tasks alone if there are fewer than LEAST_SEEDS seeds. A value that is not
    finite is never dropped: the mean is undefined, and their number is given.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"scores must be a table [seeds, tasks]; got the shape {table.shape}")
    seeds, tasks = table.shape
    undefined = int((~np.isfinite(table)).sum())
    with np.errstate(invalid="ignore"):
        seed_means = tuple(float(value) for value in table.mean(1))
    if undefined:
        return Estimate(None, None, None, None, seed_means, tasks, undefined)
    mean = float(table.mean())
    if _of_networks(table).size == 1:
        return Estimate(mean, None, None, None, seed_means, tasks)
    error, freedom = (float(part) for part in standard_error(_of_networks(table)))
    half = float(t_quantile((1 + LEVEL) / 2, freedom)) * error
    p = _p_value(table, error, freedom) if seeds >= LEAST_SEEDS else None
    return Estimate(mean, (mean - half, mean + half), freedom, p, seed_means, tasks)


def _p_value(table: Array, error: float, freedom: float) -> float:
    """Return the larger of two p-values of a mean of 0: over seeds and tasks, and over seeds.

    Holm's method uses p-values far in the tail, where Satterthwaite's degrees of freedom are too
    many: with 3 seeds and a nominal 0.5 % they reject 2 % of true hypotheses. The first p therefore
    uses their geometric mean with S - 1, and the second is exact if seeds vary most."""
    seeds, mean = len(table), float(table.mean())
    over_both = two_sided_p(mean, error, math.sqrt(freedom * (seeds - 1)))
    over_seeds = table.mean(1).std(ddof=1) / math.sqrt(seeds)
    return max(over_both, two_sided_p(mean, float(over_seeds), seeds - 1.0))


def paired(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Return the mean of a - b over the same seeds and tasks: [S, E], [S, E] -> Estimate."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            f"paired scores must have the same shape [S, E]; got {first.shape} and {second.shape}"
        )
    with np.errstate(invalid="ignore"):
        return estimate(first - second)


def ratio_interval(a: ArrayLike, b: ArrayLike) -> tuple[float, float] | None:
    """Return the 95 % interval of mean(a) / mean(b) over the same seeds and tasks: 2 x [S, E].

    Every r for which the mean of a - r b is not distinguished from 0 (Fieller 1954, Journal of the
    Royal Statistical Society B 16(2), section 2), so that the variance of both is in it. None if
    the mean of b is not distinguished from 0, or if there is no interval of a mean."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    low, high = (float(end) for end in interval(second))
    if not (low > 0 or high < 0):  # also NaN
        return None
    middle = float(first.mean() / second.mean())
    ends = [_ratio_end(first, second, middle, sign) for sign in (-1.0, 1.0)]
    return (ends[0], ends[1]) if all(map(math.isfinite, ends)) else None


def _ratio_end(a: Array, b: Array, inside: float, sign: float) -> float:
    """Return the last r on one side of `inside` for which a - r b may have the mean 0."""

    def may_be(ratios: Array) -> NDArray[np.bool_]:
        low, high = interval(a[..., None] - ratios * b[..., None])
        return np.asarray((low <= 0) & (high >= 0))

    step = max(abs(inside), 1.0) * 1e-6
    reach: Array = inside + sign * step * 4.0 ** np.arange(24, dtype=np.float64)
    outside = np.flatnonzero(~may_be(reach))
    if not outside.size:
        return math.inf
    far = float(reach[outside[0]])
    near = float(reach[outside[0] - 1]) if outside[0] else inside
    for _ in range(5):
        grid = np.linspace(near, far, 9)
        last = int(np.flatnonzero(~may_be(grid[1:]))[0])
        near, far = float(grid[last]), float(grid[last + 1])
    return near
