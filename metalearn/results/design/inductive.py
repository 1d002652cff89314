"""`inductive` of comparison.json: transductive rows tested once more without transduction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metalearn.evaluate import random_effects
from metalearn.results.records import Array, Group, Json, Run
from metalearn.storage.files import read_npz

SCORES = "inductive.npz"  # scores [E] of the headline step


def inductive_rows(groups: Sequence[Group]) -> list[Json]:
    """Return the `inductive` rows of comparison.json, one per transductive row that has a record.

    Each has the mean under inductive normalisation and by how much the transductive mean is higher,
    both with intervals, or the reason why there is none."""
    return [row for group in groups if (row := _row(group)) is not None]


def _row(group: Group) -> Json | None:
    records = [run.result.get("inductive") or {} for run in group.runs]
    if not any(records):
        return None
    first = records[0]
    row: Json = {"label": group.label, "normalisation": first.get("normalisation")}
    row |= {"value": None, "interval": None, "difference": None, "ci95": None}
    tables = [_scores(run) for run in group.runs]
    own = group.at_headline()
    known_tables = [table for table in tables if table is not None]
    if (
        own is None
        or len(known_tables) < len(tables)
        or {len(table) for table in known_tables} != {own.shape[1]}
    ):
        return row | {"why": first.get("why") or "not every seed was tested in this way"}
    inductive = np.stack(known_tables)  # [S, E]
    mean, gap = random_effects.estimate(inductive), random_effects.paired(own, inductive)
    return row | {
        "value": mean.value,
        "interval": _ends(mean.ci95),
        "difference": gap.value,
        "ci95": _ends(gap.ci95),
        "why": None,
    }


def _scores(run: Run) -> Array | None:
    file = run.path / SCORES
    return read_npz(file).get("scores") if file.exists() else None


def _ends(ci95: tuple[float, float] | None) -> list[float] | None:
    return None if ci95 is None else list(ci95)
