"""How well one task's score separates tasks: the part of its variance that is not noise.

A task's accuracy is the fraction of Q correct predictions, so with a true accuracy p it has the
variance p (1 - p) / Q by chance alone. Reliability is the rest of the variance over tasks, divided
by it (Lord & Novick 1968, Statistical Theories of Mental Test Scores, chapter 23): 1 where every
difference between two tasks is real, 0 where all of it is chance. S seeds, E tasks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from metalearn.evaluate.random_effects import mean_squares


def binomial_reliability(accuracy: ArrayLike, queries: int) -> float | None:
    """Return the reliability of the accuracy of one task on `queries` examples: [S, E] -> 0 .. 1.

    It is the mean over seeds. The noise of a task is estimated by p (1 - p) / (Q - 1), which has no
    bias. None for fewer than 2 tasks or queries, if accuracies are not finite, and if no task
    differs from another."""
    table = np.asarray(accuracy, np.float64)
    if queries < 2 or table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        return None
    variance = table.var(1, ddof=1).mean()
    noise = (table * (1 - table)).mean() / (queries - 1)
    return None if variance == 0 else float(np.clip(1 - noise / variance, 0, 1))


def agreement(scores: ArrayLike) -> float | None:
    """Return the intraclass correlation of a task's score under two seeds: [S, E] -> 0 .. 1.

    (MS_task - MS_residual) / (MS_task + (S - 1) MS_residual), the ICC(C,1) of McGraw & Wong (1996,
    Psychological Methods 1(1), table 4). None with fewer than 2 seeds or tasks, if scores are not
    finite, and if no task differs from another."""
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        return None
    squares, seeds = mean_squares(table), len(table)
    denominator = float(squares.tasks + (seeds - 1) * squares.residual)
    if denominator == 0:
        return None
    return float(np.clip((squares.tasks - squares.residual) / denominator, 0, 1))
