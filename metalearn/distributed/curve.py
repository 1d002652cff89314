"""A learning curve whose episodes are distributed over ranks by their numbers."""

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
    draw_seed: int = 0  # seed of the method's own random numbers
    # Whether the curve has the fingerprint of the episodes: sampling and hashing 32 of them takes
    # about a second for large images.
    fingerprinted: bool = False


def curve(
    ranks: Ranks,
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    tasks: TaskSet,
    ledger: Ledger,
) -> Curve:
    """Return the learning curve of one meta, or of the ensemble of several; equal on all ranks.

    The ledger of rank 0 records the counts of all ranks, but only its own seconds."""
    source: TaskSource = getattr(parts, tasks.split)
    method, evaluate = parts.test_method, experiment.evaluate
    method = method if len(metas) == 1 else ensemble(method, metas)
    options: dict[str, Any] = {"chunk": evaluate.chunk, "draw_seed": tasks.draw_seed}
    points = curve_points(method, source, evaluate.steps, tasks.episodes)
    seed_of_print = tasks.seed if tasks.fingerprinted else None
    if ranks.size == 1:
        whole = (0, tasks.episodes)
        all_scores = score_episodes(
            method, metas[0], source, points, whole, tasks.seed, ledger=ledger, **options
        )
        return make_curve(all_scores, source, points, seed_of_print)
    first, count = ranks.share(tasks.episodes)
    own_ledger: Ledger = ledger
    if not ranks.is_first:
        own_ledger = CostLedger(parts.device) if isinstance(ledger, CostLedger) else NullLedger()
    scores = None
    if count:
        span = (first, first + count)
        scores = score_episodes(
            method, metas[0], source, points, span, tasks.seed, ledger=own_ledger, **options
        )
        scores = on_cpu(scores)
    spent = own_ledger.totals() if isinstance(own_ledger, CostLedger) and not ranks.is_first else {}
    results = ranks.gather((scores, spent))
    for _, entries in results[1:]:
        _add_counts(ledger, entries)
    all_scores = _concatenate([rank_scores for rank_scores, _ in results if rank_scores])
    return make_curve(all_scores, source, points, seed_of_print)


def _concatenate(parts: Sequence[Scores]) -> Scores:
    notes = {name: torch.cat([part.notes[name] for part in parts]) for name in parts[0].notes}
    columns = zip(*(part[:-1] for part in parts), strict=True)  # all but the notes
    accuracy, loss, finite, nll, counts = (torch.cat(column) for column in columns)
    return Scores(accuracy, loss, finite, nll, counts, notes)


def _add_counts(ledger: Ledger, spent: dict[str, Entry]) -> None:
    """Add the counts of another rank; its seconds passed in parallel with those of this rank."""
    if isinstance(ledger, CostLedger):
        for phase, entry in spent.items():
            left_out = ("seconds", "peak_bytes")
            ledger.add(phase, 0.0, **{k: v for k, v in entry.items() if k not in left_out})
