"""Statistics of learning curves: intervals over tasks and over seeds, paired differences, areas,
divergence.

Letters: E evaluation episodes (tasks), P points of a curve, S training seeds (in this file only). A
score that is not finite is never dropped: whatever it enters is undefined, which is None for a
number and NaN inside an array, and the number of such tasks stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
# the field's convention (Finn et al. 2017, section 5.2, and the authors' code): 1.96 sd /
# sqrt(tasks)
Z95 = 1.96
# a task has diverged when its loss is not finite or above this many times the mean loss of step 0
DIVERGED = 10.0


class Mean(NamedTuple):
    """A mean over tasks with its interval; `undefined` counts the tasks whose score is not
    finite.
    """

    value: float | None
    ci95: float | None
    tasks: int
    undefined: int


class Paired(NamedTuple):
    """A mean difference a - b over the same tasks, with its bootstrap interval and two-sided p."""

    difference: float | None
    ci95: list[float] | None  # [low, high]
    p: float | None
    undefined: int  # tasks (over all seeds) where a - b is not finite


def number(value: float) -> float | None:
    """A finite float, or None."""
    return float(value) if math.isfinite(value) else None


def ci95(scores: ArrayLike) -> Array:
    """Half width of the 95 % interval of the mean over tasks: [E, ...] -> [...].

    1.96 sd / sqrt(E), with E - 1 in the deviation; NaN for one task or where a score is not finite.
    """
    values = np.asarray(scores, np.float64)
    if values.shape[0] < 2:
        return np.full(values.shape[1:], np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(Z95 * values.std(0, ddof=1) / math.sqrt(values.shape[0]))


def describe(scores: ArrayLike) -> Mean:
    """Mean and 95 % interval over tasks of one point: [E] -> Mean, both None when a score is not
    finite.
    """
    values = np.asarray(scores, np.float64)
    undefined = int((~np.isfinite(values)).sum())
    if undefined or values.size == 0:
        return Mean(None, None, values.size, undefined)
    return Mean(number(values.mean()), number(float(ci95(values))), values.size, 0)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a whole number of degrees of freedom, by bisection on the
    closed distribution.

    With angle = atan(t / sqrt(freedom)), P(|T| < t) is a finite sum (Abramowitz & Stegun 1964,
    26.7.3 and 26.7.4)."""
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(
            f"needs 0 < probability < 1 and freedom >= 1; got {probability} and {freedom}"
        )
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
        )
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle))."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def seeds_ci95(values: Sequence[float | None]) -> float | None:
    """Half width of the 95 % t interval over seeds: t(0.975, S - 1) sd / sqrt(S).

    None for one seed or where a value is undefined.
    """
    found = np.asarray([math.nan if value is None else value for value in values], np.float64)
    if found.size < 2 or not np.isfinite(found).all():
        return None
    return float(t_quantile(0.975, found.size - 1) * found.std(ddof=1) / math.sqrt(found.size))


def iqm(scores: ArrayLike, worst: float = -math.inf) -> float | None:
    """Interquartile mean: the mean of what is left after a quarter is cut from each end (Agarwal et
    al. 2021, NeurIPS).

    All axes are pooled. An undefined score counts as `worst` (-inf for accuracy, inf for a loss),
    so it fills the bad end; None when the middle half still holds one.
    """
    values = np.asarray(scores, np.float64).ravel()
    values = np.sort(np.where(np.isnan(values), worst, values))
    cut = values.size // 4
    middle = values[cut : values.size - cut]
    return number(float(middle.mean())) if middle.size and np.isfinite(middle).all() else None


def auc(x: ArrayLike, values: ArrayLike) -> float | None:
    """Area under a curve by trapezoids, divided by the width, so in the unit of the values: [P],
    [P] -> mean height.

    `x` are steps, or `np.log2(1 + steps)` to weigh early steps more. One point is its own area.
    None when a value is not finite.
    """
    places, heights = np.asarray(x, np.float64), np.asarray(values, np.float64)
    if (
        places.shape != heights.shape
        or places.ndim != 1
        or places.size == 0
        or (np.diff(places) <= 0).any()
    ):
        raise ValueError("auc needs as many values as places, and places that rise")
    if not np.isfinite(heights).all():
        return None
    if places.size == 1:
        return float(heights[0])
    area = (np.diff(places) * (heights[1:] + heights[:-1]) / 2).sum()
    return float(area / (places[-1] - places[0]))


def diverged(loss: ArrayLike, start: float | None = None) -> NDArray[np.bool_]:
    """Which tasks have diverged at which point: [E, P] -> [E, P] bool.

    A loss that is not finite, or above ten times the mean loss of step 0: `start`, by default the
    mean of the finite losses in the first column.
    """
    values = np.asarray(loss, np.float64)
    first = values[:, 0][np.isfinite(values[:, 0])]
    limit = DIVERGED * (start if start is not None else first.mean() if first.size else math.inf)
    return ~np.isfinite(values) | (values > limit)


def paired(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = 2000) -> Paired:
    """Mean of a - b over the same seeds and tasks, with a two-level bootstrap: [S, E], [S, E] ->
    Paired.

    Every resample draws S seeds and E tasks with replacement; a task stays paired with itself, and
    one draw of tasks serves all drawn seeds, because all seeds meet the same frozen episodes (the
    pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2); tasks drawn anew in each
    seed would count one task S times as if it were S). Interval: percentiles 2.5 and 97.5. p =
    min(1, 2 min(P(mean <= 0), P(mean >= 0))), with one added to counts and resamples, so never
    below 2 / (resamples + 1). With one seed the interval is over tasks alone; with few seeds it is
    on the narrow side."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(
            f"paired scores must have the same shape [S, E]; got {first.shape} and {second.shape}"
        )
    with np.errstate(invalid="ignore"):
        gap = first - second
    undefined = int((~np.isfinite(gap)).sum())
    if undefined:
        return Paired(None, None, None, undefined)
    seeds, tasks = gap.shape
    generator = np.random.default_rng(seed)
    means = _counts(generator, resamples, seeds) @ gap * _counts(generator, resamples, tasks)
    means = means.sum(1) / gap.size
    low, high = np.percentile(means, (2.5, 97.5))
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (resamples + 1))
    return Paired(float(gap.mean()), [float(low), float(high)], p, 0)


def band(scores: ArrayLike, seed: int, resamples: int = 2000) -> tuple[Array, Array]:
    """Percentiles 2.5 and 97.5 of the mean at every point, by the bootstrap of `paired`: [S, E, P]
    -> two of [P].

    One draw of seeds and tasks serves all points of a resample. NaN where a score is not finite;
    with one seed the band is over tasks alone.
    """
    values = np.asarray(scores, np.float64)
    seeds, tasks, _ = values.shape
    generator = np.random.default_rng(seed)
    of_seeds, of_tasks = _counts(generator, resamples, seeds), _counts(generator, resamples, tasks)
    with np.errstate(invalid="ignore"):
        means = np.einsum("rs,re,sep->rp", of_seeds, of_tasks, values, optimize=True) / (
            seeds * tasks
        )
        low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return low, high


def _counts(generator: np.random.Generator, resamples: int, size: int) -> Array:
    """How often each of `size` things is drawn in each resample: [resamples, size]."""
    drawn = generator.integers(0, size, (resamples, size)) + size * np.arange(resamples)[:, None]
    return (
        np.bincount(drawn.ravel(), minlength=resamples * size)
        .reshape(resamples, size)
        .astype(np.float64)
    )
