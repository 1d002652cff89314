"""A learning curve whose episodes are shared out over ranks by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from metalearn.config.build import Parts
from metalearn.config.experiment import Experiment
from metalearn.distributed.ranks import Ranks, on_cpu
from metalearn.evaluate.curves import (
    Curve,
    Scores,
    curve_points,
    learning_curve,
    make_curve,
    score_episodes,
)
from metalearn.evaluate.ensemble import ensemble
from metalearn.evaluate.ledger import CostLedger, Entry
from metalearn.types import Ledger, Meta, NullLedger, TaskSource


class TaskSet(NamedTuple):
    """The tasks of a learning curve."""

    split: str  # train_in_test_form, valid or test: an attribute of Parts
    episodes: int
    seed: int
    draw_seed: int = 0  # numbers what a method draws for itself


def curve(
    ranks: Ranks,
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    tasks: TaskSet,
    ledger: Ledger,
) -> Curve:
    """The learning curve of one meta, or of the ensemble of several; the same on all ranks.

    The ledger of rank 0 gets what all ranks spent; seconds are its own."""
    source: TaskSource = getattr(parts, tasks.split)
    method, evaluate = parts.test_method, experiment.evaluate
    method = method if len(metas) == 1 else ensemble(method, metas)
    options: dict[str, Any] = {"chunk": evaluate.chunk, "draw_seed": tasks.draw_seed}
    if ranks.size == 1:
        options |= {"episodes": tasks.episodes, "seed": tasks.seed, "ledger": ledger}
        return learning_curve(method, metas[0], source, evaluate.steps, **options)
    points = curve_points(method, source, evaluate.steps, tasks.episodes)
    first, count = ranks.share(tasks.episodes)
    own: Ledger = ledger
    if not ranks.is_first:
        own = CostLedger(parts.device) if isinstance(ledger, CostLedger) else NullLedger()
    mine = None
    if count:
        span = (first, first + count)
        mine = score_episodes(
            method, metas[0], source, points, span, tasks.seed, ledger=own, **options
        )
        mine = on_cpu(mine)
    spent = own.totals() if isinstance(own, CostLedger) and not ranks.is_first else {}
    found = ranks.gather((mine, spent))
    for _, entries in found[1:]:
        _add_counts(ledger, entries)
    return make_curve(_joined([part for part, _ in found if part]), source, points, tasks.seed)


def _joined(found: Sequence[Scores]) -> Scores:
    notes = {name: torch.cat([part.notes[name] for part in found]) for name in found[0].notes}
    columns = zip(*(part[:-1] for part in found), strict=True)  # all but the notes
    accuracy, loss, finite, nll, counts = (torch.cat(column) for column in columns)
    return Scores(accuracy, loss, finite, nll, counts, notes)


def _add_counts(ledger: Ledger, spent: dict[str, Entry]) -> None:
    """Add what another rank counted; its seconds passed while this one's clock ran."""
    if isinstance(ledger, CostLedger):
        for phase, entry in spent.items():
            left_out = ("seconds", "peak_bytes")
            ledger.add(phase, 0.0, **{k: v for k, v in entry.items() if k not in left_out})
