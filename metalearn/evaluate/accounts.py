"""Reading the `cost` block of results: what was spent once, and what one new task takes up to a
point of its curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.ledger import PHASES, MissingPhase

Array = NDArray[np.float64]
Cost = Mapping[str, Mapping[str, Any] | None]
Axis = Literal["flops", "seconds"]
ONCE = (
    "tune",
    "pretrain",
    "meta_train",
    "search",
    "retrain",
)  # the last two where they are not of new tasks
EACH = ("search", "retrain", "adapt", "predict")
LEARNING = ("search", "retrain", "adapt")  # of a new task; answering its queries is apart


def per_task(entry: Mapping[str, Any]) -> bool:
    """Whether a phase's numbers are those of one new task."""
    return "seconds_batched" in entry


def entry_of(cost: Cost, phase: str) -> Mapping[str, Any]:
    """One phase; MissingPhase where the block does not have it: an absent phase is no zero."""
    found = cost.get(phase)
    if found is None:
        raise MissingPhase(
            f"the cost block has no phase {phase!r}: it should have {', '.join(PHASES)}"
        )
    return found


def up_front(cost: Cost, axis: Axis, *, tuning: bool = True) -> float | None:
    """Cost before any new task: tuning, pretraining, meta-training, and search for all tasks
    together.

    In FLOPs of matrix products and convolutions, or in seconds. `setup` (imports, data, compilation
    and the measuring itself) is not in it, and `tune` only where `tuning` is. None where a phase
    was not measured.
    """
    entries = [entry_of(cost, phase) for phase in ONCE if tuning or phase != "tune"]
    spent = [entry.get("once", {}) if per_task(entry) else entry for entry in entries]
    return _sum([entry.get(axis) for entry in spent if entry])


def learning(cost: Cost, axis: Axis, steps: Sequence[int]) -> Array | None:
    """What learning one new task takes up to each point of a curve: [P]; None where a phase was not
    measured.

    Search and whatever comes before the first step is paid at every point; the rest grows with the
    steps. Seconds are those of a task inside a batch of tasks.
    """
    last = max(steps)
    share = np.asarray([step / last if last else 1.0 for step in steps])
    total = np.zeros(len(steps))
    for phase in LEARNING:
        entry = entry_of(cost, phase)
        if not per_task(entry):
            continue
        whole = entry.get("seconds_batched" if axis == "seconds" else "flops")
        if whole is None:
            return None
        start = entry.get(f"{axis}_at_start", whole)
        total += start + (whole - start) * share
    return total


def answering(cost: Cost, axis: Axis) -> float | None:
    """What predicting the queries of one new task once takes."""
    value = entry_of(cost, "predict").get("seconds_batched" if axis == "seconds" else "flops")
    return None if value is None else float(value)


def whole_seconds(cost: Cost) -> float | None:
    """All seconds of a run: of the phases of new tasks, those of one task times the tasks."""
    entries = [entry_of(cost, phase) for phase in PHASES]
    return _sum(
        [
            (entry["seconds_batched"] or 0.0) * entry.get("tasks", 0)
            if per_task(entry)
            else entry.get("seconds")
            for entry in [*entries, *(entry["once"] for entry in entries if "once" in entry)]
        ]
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if len(known) == len(values) else None
