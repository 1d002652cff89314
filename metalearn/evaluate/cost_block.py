"""Readings of `cost` of results: before any new task, and of one task up to a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.ledger import PHASES, MissingPhase

Array = NDArray[np.float64]
Cost = Mapping[str, Mapping[str, Any] | None]
Axis = Literal["flops", "seconds"]
UNKNOWN = "unknown"  # spent by somebody else and not published
NOT_IN_OLD = ("compile",)  # phases that results of schema 1 may lack
# Before any new task; search and retrain where they are not those of new tasks.
ONCE = ("tune", "pretrain", "meta_train", "search", "retrain")
EACH = ("search", "retrain", "adapt", "predict")  # of a new task
LEARNING = ("search", "retrain", "adapt")  # of a new task, without answering its queries


def per_task(entry: Mapping[str, Any]) -> bool:
    """Whether a phase's numbers are those of one new task."""
    return "seconds_batched" in entry


def phase_entry(cost: Cost, phase: str) -> Mapping[str, Any]:
    """One phase of a cost block; MissingPhase where it is absent, which is not a zero."""
    found = cost.get(phase)
    if found is None:
        text = f"the cost block has no phase {phase!r}: valid: {', '.join(PHASES)}"
        raise MissingPhase(text)
    return found


def up_front_cost(
    cost: Cost, axis: Axis, *, tuning: bool = True, given: bool = True
) -> float | None:
    """Cost before any new task: tuning, pretraining, meta-training and shared search.

    Without `given`, weights that somebody else has trained are free.

    In FLOPs of matrix products and convolutions, or in seconds. `setup` (imports, data, and the
    measuring itself) and `compile` are not in it, and `tune` only where `tuning` is. None where a
    phase was not measured."""
    entries = [phase_entry(cost, phase) for phase in ONCE if tuning or phase != "tune"]
    entries = entries if given else [entry.get("own") or entry for entry in entries]
    spent = [entry.get("once", {}) if per_task(entry) else entry for entry in entries]
    return _sum([entry.get(axis) for entry in spent if entry])


def learning_cost(cost: Cost, axis: Axis, steps: Sequence[int]) -> Array | None:
    """Cost of one new task up to each point of a curve: [P]; None if not all was measured.

    Search, and all else before the first step, counts at every point; the rest is proportional to
    the steps. Seconds are those of a task inside a batch of tasks."""
    last = max(steps)
    share = np.asarray([step / last if last else 1.0 for step in steps])
    total = np.zeros(len(steps))
    for phase in LEARNING:
        entry = phase_entry(cost, phase)
        if not per_task(entry):
            continue
        whole = entry.get("seconds_batched" if axis == "seconds" else "flops")
        if whole is None:
            return None
        start = entry.get(f"{axis}_at_start", whole)
        total += start + (whole - start) * share
    return total


def answering_cost(cost: Cost, axis: Axis) -> float | None:
    """Cost of predicting the queries of one new task once; None where it was not measured."""
    value = phase_entry(cost, "predict").get("seconds_batched" if axis == "seconds" else "flops")
    return None if value is None else float(value)


def per_query(entry: Mapping[str, Any], queries: int) -> dict[str, Any]:
    """`queries`, `flops_per_query` and `seconds_per_query` of a `predict` entry of one task."""
    names = {"flops_per_query": "flops", "seconds_per_query": "seconds_batched"}
    spent = {name: entry.get(of) for name, of in names.items()}
    shared = {name: None if value is None else value / queries for name, value in spent.items()}
    return {"queries": queries, **shared}


def total_seconds(cost: Cost) -> float | None:
    """All seconds of a run.

    Phases of new tasks count once for each of their tasks, with the seconds of the run itself."""
    phases = [phase for phase in PHASES if phase in cost or phase not in NOT_IN_OLD]
    entries = [phase_entry(cost, phase) for phase in phases]
    return _sum(
        [
            ((entry.get("first_pass") or entry)["seconds_batched"] or 0.0) * entry.get("tasks", 0)
            if per_task(entry)
            else (entry.get("own") or entry).get("seconds")
            for entry in [*entries, *(entry["once"] for entry in entries if "once" in entry)]
        ]
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if len(known) == len(values) else None
