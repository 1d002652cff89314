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


class RuleRuns(NamedTuple):
    """All runs of one label: one per meta-training seed, a single one if hand-designed."""

    label: str
    kind: str  # learned, baseline or per_task
    runs: list[Losses]  # each [I, T, P], I inner seeds
    overhead: Overhead
    notes: Row


def row(runs: RuleRuns, points: Sequence[int]) -> Row:
    """Return means over tasks and seeds; 95 % half widths over tasks, and over training seeds."""
    train, held_out = (_stacked(runs, part) for part in ("train", "held_out"))  # [S, I, T, P]
    by_task, by_seed = train.mean((0, 1)), train.mean((1, 2))
    start = float(train[..., 0].mean())
    diverged = stats.diverged(train.flatten(0, 2).numpy(), start).mean(0)
    inner = train.mean((0, 2))  # [I, P]
    return {
        "label": runs.label,
        "kind": runs.kind,
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
        "held_out": _numbers(held_out.mean((0, 1, 2))),
        "diverged": _numbers(diverged),
        "seconds_per_step": runs.overhead.seconds,
        "flops_per_step": runs.overhead.flops,
        **runs.notes,
    }


def differences(learned: RuleRuns, others: Sequence[RuleRuns], at: int) -> list[Row]:
    """Return the learned rule's loss minus each other's at one point, paired over tasks and seeds.

    Negative: the learned rule's is lower."""
    learned_losses = _stacked(learned, "train").mean(1)[..., at].numpy()  # [S, T]
    rows = []
    for other in others:
        losses = _stacked(other, "train").mean(1)[..., at].numpy()
        other_losses = np.broadcast_to(losses, learned_losses.shape) if len(losses) == 1 else losses
        estimate = paired(learned_losses, other_losses)
        rows.append(
            {
                "a": learned.label,
                "b": other.label,
                "difference": estimate.value,
                "ci95": None if estimate.ci95 is None else list(estimate.ci95),
                "p": estimate.p,
            }
        )
    return rows


def _stacked(rule_runs: RuleRuns, part: str) -> Tensor:
    return torch.stack([getattr(run, part) for run in rule_runs.runs]).to("cpu", torch.float64)


def _numbers(values: Any) -> list[float | None]:
    return [stats.number(float(value)) for value in values]
