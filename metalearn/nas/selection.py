"""Scores on the queries of every candidate of a per-task search, computed after the test.

The search has ended by then: its choices and its cost do not change. This is measuring (`setup`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from metalearn.component import FirstTasks
from metalearn.losses import accuracy, criterion
from metalearn.rng import fold_in
from metalearn.tree import take
from metalearn.types import EpisodeSpec, NullLedger

TASKS = 10  # test tasks whose candidates are all trained
Notes = dict[str, Tensor]


def candidates_on_queries(
    train: Callable[..., Tensor],
    spec: EpisodeSpec,
    notes: Notes,
    tasks: FirstTasks,
    steps: int,
    *,
    one_unit: bool,
) -> dict[str, Any] | None:
    """Return arrays of selection.npz for the first R test tasks; None without a choice.

    `score` [R, A] is what a candidate was chosen by, `truth` [R, A] minus its loss on the queries
    after training on the whole support set as the winner is, `accuracy` [R, A] that on the queries
    (NaN for regression), `pick` [R] the index of the chosen one, `one_unit` [1] whether score and
    truth are both minus a loss of held-out examples."""
    if notes["trial_genotype"].shape[1] < 2:
        return None
    batch, keys = tasks(TASKS)
    keys, count = fold_in(keys, "retrain"), len(batch.support.x)
    candidates, full = notes["trial_genotype"][:count].tolist(), _trained_fully(notes, count)
    loss, accuracies = np.full((2, count, len(candidates[0])), np.nan)
    for column in np.flatnonzero(full):
        rows = [task for task in range(count) if candidates[task][column][0] >= 0]
        chosen = [tuple(candidates[task][column]) for task in rows]
        support, query = (take(part, rows) for part in (batch.support, batch.query))
        outputs = train(chosen, support, query.x, (steps,), keys[rows], NullLedger())[:, 0]
        loss[rows, column] = criterion(spec)(outputs, query.y, batch_dims=1).cpu()
        if spec.classification:
            accuracies[rows, column] = accuracy(outputs, query.y, batch_dims=1).cpu()
    return _arrays(notes, loss, accuracies, full & np.isfinite(loss).any(0), one_unit)


def _trained_fully(notes: Notes, tasks: int) -> Any:
    """Return which candidates every task has trained fully: [A] bool.

    In a halving search not all are: a score after fewer steps is not comparable."""
    fractions = notes["trial_share"][:tasks].cpu().numpy()
    return (fractions == np.nanmax(fractions)).all(0)


def _arrays(
    notes: Notes, loss: Any, accuracies: Any, full: Any, one_unit: bool
) -> dict[str, Any] | None:
    tasks = len(loss)
    score = notes["trial_score"][:tasks].cpu().numpy().astype(np.float64)
    loss, accuracies, score = loss[:, full], accuracies[:, full], score[:, full]
    if loss.shape[1] < 2:
        return None
    worst = np.nanmax(np.where(np.isfinite(loss), loss, np.nan))
    genotypes = notes["trial_genotype"][:tasks].cpu().numpy()[:, full]
    same = (genotypes == notes["genotype"][:tasks].cpu().numpy()[:, None]).all(-1)
    return {
        "score": score,
        "truth": -np.where(np.isfinite(loss), loss, worst),  # a diverged one is as bad as the worst
        "accuracy": accuracies,
        "pick": np.where(same.any(1), same.argmax(1), -1).astype(np.float64)[:, None],
        "one_unit": np.full((tasks, 1), float(one_unit)),
    }
