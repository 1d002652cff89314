"""Whether a search selected better candidates or noise: scores of candidates against their truth.

Letters of this file: R searches (tasks or seeds), A candidates of each. Higher is better, for
scores and truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Noise(NamedTuple):
    """Quality of a selection, means over the searches; None if it is not defined."""

    tau: float | None  # Kendall's tau-b between score and truth: 1 the same order, 0 none
    spearman: float | None
    regret: float  # truth of the best candidate minus truth of the pick
    regret_of_chance: float  # the same for a candidate picked at random
    optimism: float | None  # score minus truth of the pick; None if they have different units
    gain: float  # truth of the pick minus the mean candidate's
    searches: int
    candidates: int


def noise(
    score: Sequence[ArrayLike],
    truth: Sequence[ArrayLike],
    pick: Sequence[int] | None = None,
    *,
    one_unit: bool = True,
) -> Noise:
    """Compare score and truth of every candidate of each search: R pairs of [A].

    `pick` [R] is the index of the selected candidate; by default the best score, the first of
    equals. A score that is not finite is the worst. `one_unit`: both are, say, accuracies, so that
    their difference is optimism.

    Raises:
        ValueError: If shapes differ, or a truth is not finite."""
    picks: Sequence[int | None] = [None] * len(score) if pick is None else list(pick)
    rows = [
        _selection_row(np.asarray(s, np.float64), np.asarray(t, np.float64), choice)
        for s, t, choice in zip(score, truth, picks, strict=True)
    ]
    if not rows:
        raise ValueError("selection needs at least one search")
    columns = list(zip(*rows, strict=True))
    tau, spearman, regret, chance, optimism, gain, size = (_mean(column) for column in columns)
    return Noise(
        tau,
        spearman,
        regret or 0.0,
        chance or 0.0,
        optimism if one_unit else None,
        gain or 0.0,
        len(rows),
        round(size or 0),
    )


def _selection_row(score: Array, truth: Array, choice: int | None) -> tuple[float, ...]:
    if score.shape != truth.shape or score.ndim != 1 or score.size == 0:
        text = f"score and truth of a search must have equal length: {score.shape},"
        raise ValueError(f"{text} {truth.shape}")
    if not np.isfinite(truth).all():
        text = "the truth of every candidate must be finite"
        raise ValueError(f"{text}: set diverged candidates to the worst score")
    worst = np.where(np.isfinite(score), score, -np.inf)
    pick = int(worst.argmax()) if choice is None else int(choice)
    best, middle, picked = float(truth.max()), float(truth.mean()), float(truth[pick])
    order = kendall(worst, truth), spearman(worst, truth)
    return (
        *order,
        best - picked,
        best - middle,
        float(score[pick]) - picked,
        picked - middle,
        score.size,
    )


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b (Kendall 1945, Biometrika 33(3)), from scipy: [A], [A] -> -1..1.

    NaN if one of them is constant."""
    return _correlation("kendalltau", a, b)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's correlation of ranks (1904, American Journal of Psychology 15(1)), from scipy.

    [A], [A] -> -1..1; NaN if one of them is constant."""
    return _correlation("spearmanr", a, b)


def _correlation(name: str, a: ArrayLike, b: ArrayLike) -> float:
    x, y = (np.asarray(values, np.float64) for values in (a, b))
    if (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    from scipy import stats

    return float(getattr(stats, name)(x, y).statistic)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None
