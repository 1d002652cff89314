"""Statistics of learning curves: intervals over tasks, intervals over seeds, areas, divergence.

Letters: E evaluation episodes (tasks), P points of a curve, S training seeds. A score that is not
finite is never dropped: a statistic of it is undefined, which is None for a number and NaN inside
an array. Means over seeds and tasks together are in random_effects.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.statistics.students_t import t_quantile

Array = NDArray[np.float64]
DIVERGED = 10.0  # a task has diverged above this many times the mean loss of step 0


class Mean(NamedTuple):
    """A mean over tasks with its interval; `undefined` counts tasks whose score is not finite."""

    value: float | None
    ci95: float | None
    tasks: int
    undefined: int


def number(value: float) -> float | None:
    """Return a finite float, or None."""
    return float(value) if math.isfinite(value) else None


def ci95(scores: ArrayLike) -> Array:
    """Return half the 95 % interval of the mean over tasks, given the network: [E, ...] -> [...].

    t(0.975, E - 1) sd / sqrt(E), with E - 1 in the standard deviation; NaN for one task or if a
    score is not finite. With 600 tasks t is 1.964, where papers write 1.96."""
    values = np.asarray(scores, np.float64)
    if values.shape[0] < 2:
        return np.full(values.shape[1:], np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        quantile = t_quantile(0.975, values.shape[0] - 1)
        return np.asarray(quantile * values.std(0, ddof=1) / math.sqrt(values.shape[0]))


def describe(scores: ArrayLike) -> Mean:
    """Return the mean and 95 % interval over tasks of one point: [E] -> Mean.

    Both are None when a score is not finite."""
    values = np.asarray(scores, np.float64)
    undefined = int((~np.isfinite(values)).sum())
    if undefined or values.size == 0:
        return Mean(None, None, values.size, undefined)
    return Mean(number(values.mean()), number(float(ci95(values))), values.size, 0)


def seeds_ci95(values: Sequence[float | None]) -> float | None:
    """Return half the 95 % t interval over seeds: t(0.975, S - 1) sd / sqrt(S).

    None for one seed or if a value is undefined."""
    scores = np.asarray([math.nan if value is None else value for value in values], np.float64)
    if scores.size < 2 or not np.isfinite(scores).all():
        return None
    return float(t_quantile(0.975, scores.size - 1) * scores.std(ddof=1) / math.sqrt(scores.size))


def iqm(scores: ArrayLike, worst: float = -math.inf) -> float | None:
    """Return the interquartile mean: the mean of the middle half (Agarwal et al. 2021, NeurIPS).

    All axes are pooled. An undefined score counts as `worst` (-inf for accuracy, inf for a loss);
    None if the middle half still contains one."""
    values = np.asarray(scores, np.float64).ravel()
    values = np.sort(np.where(np.isnan(values), worst, values))
    cut = values.size // 4
    middle = values[cut : values.size - cut]
    return number(float(middle.mean())) if middle.size and np.isfinite(middle).all() else None


def auc(x: ArrayLike, values: ArrayLike) -> float | None:
    """Return the area under a curve by trapezoids, divided by its width: [P], [P] -> mean height.

    `x` are steps, or `np.log2(1 + steps)` to weigh early steps more. One point is its own area.
    None when a value is not finite."""
    positions, heights = np.asarray(x, np.float64), np.asarray(values, np.float64)
    if (
        positions.shape != heights.shape
        or positions.ndim != 1
        or positions.size == 0
        or (np.diff(positions) <= 0).any()
    ):
        raise ValueError("auc needs equally many values and places, and ascending places")
    if not np.isfinite(heights).all():
        return None
    if positions.size == 1:
        return float(heights[0])
    area = (np.diff(positions) * (heights[1:] + heights[:-1]) / 2).sum()
    return float(area / (positions[-1] - positions[0]))


def diverged(loss: ArrayLike, start: float | None = None) -> NDArray[np.bool_]:
    """Return which tasks have diverged at which point: [E, P] -> [E, P] bool.

    A loss that is not finite, or above ten times the mean loss of step 0: `start`, by default the
    mean of the finite losses in the first column."""
    values = np.asarray(loss, np.float64)
    first = values[:, 0][np.isfinite(values[:, 0])]
    limit = DIVERGED * (start if start is not None else first.mean() if first.size else math.inf)
    return ~np.isfinite(values) | (values > limit)
