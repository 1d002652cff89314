"""Rows of the table: learned rules and baselines on the same test tasks, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.evaluate import stats
from metalearn.evaluate.random_effects import paired
from metalearn.l2o.measure import Losses, Overhead

Row = dict[str, Any]


class Measured(NamedTuple):
    """All runs of one label: one item a meta-training seed, one in all if hand-made."""

    label: str
    kind: str  # learned, baseline or per_task
    runs: list[Losses]  # each [I, T, P], I inner seeds
    overhead: Overhead
    notes: Row


def row(found: Measured, points: Sequence[int]) -> Row:
    """Means over tasks and all seeds; half widths of 95 % over tasks, and over training seeds."""
    train, held = (_stacked(found, part) for part in ("train", "held_out"))  # [S, I, T, P]
    by_task, by_seed = train.mean((0, 1)), train.mean((1, 2))
    start = float(train[..., 0].mean())
    diverged = stats.diverged(train.flatten(0, 2).numpy(), start).mean(0)
    inner = train.mean((0, 2))  # [I, P]
    return {
        "label": found.label,
        "kind": found.kind,
        "loss": _numbers(train.mean((0, 1, 2))),
        "loss_ci95_tasks": _numbers(stats.ci95(by_task.numpy())),
        "loss_ci95_seeds": [
            stats.seeds_ci95([float(v) for v in by_seed[:, p]]) for p in range(len(points))
        ],
        "loss_ci95_inner_seeds": [
            stats.seeds_ci95([float(v) for v in inner[:, p]]) for p in range(len(points))
        ],
        "loss_median": _numbers(train.flatten(0, 2).quantile(0.5, dim=0)),
        "loss_by_seed": [_numbers(seed) for seed in by_seed],
        "held_out": _numbers(held.mean((0, 1, 2))),
        "diverged": _numbers(diverged),
        "seconds_per_step": found.overhead.seconds,
        "flops_per_step": found.overhead.flops,
        **found.notes,
    }


def differences(learned: Measured, others: Sequence[Measured], at: int) -> list[Row]:
    """The learned rule's loss minus each other's at one point, paired over tasks and seeds.

    Negative: it is lower."""
    mine = _stacked(learned, "train").mean(1)[..., at].numpy()  # [S, T]
    rows = []
    for other in others:
        theirs = _stacked(other, "train").mean(1)[..., at].numpy()
        both = np.broadcast_to(theirs, mine.shape) if len(theirs) == 1 else theirs
        found = paired(mine, both)
        rows.append(
            {
                "a": learned.label,
                "b": other.label,
                "difference": found.value,
                "ci95": None if found.ci95 is None else list(found.ci95),
                "p": found.p,
            }
        )
    return rows


def _stacked(found: Measured, part: str) -> Tensor:
    return torch.stack([getattr(run, part) for run in found.runs]).to("cpu", torch.float64)


def _numbers(values: Any) -> list[float | None]:
    return [stats.number(float(value)) for value in values]
