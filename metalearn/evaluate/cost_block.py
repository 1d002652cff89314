"""Sums over the `cost` block of results: before any new task, and per task up to a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.ledger import PHASES, MissingPhase

Array = NDArray[np.float64]
Cost = Mapping[str, Mapping[str, Any] | None]
Axis = Literal["flops", "seconds"]
UNKNOWN = "unknown"  # cost of others that was not published
NOT_IN_OLD = ("compile",)  # phases that results of schema 1 may lack
# Before any new task; search and retrain if they are not those of new tasks.
ONCE = ("tune", "pretrain", "meta_train", "search", "retrain")
EACH = ("search", "retrain", "adapt", "predict")  # of a new task
LEARNING = ("search", "retrain", "adapt")  # of a new task, without predicting its queries


def per_task(entry: Mapping[str, Any]) -> bool:
    """Return whether a phase's numbers are per new task."""
    return "seconds_batched" in entry


def work_per_task(cost: Cost) -> tuple[float, ...] | None:
    """Return the FLOPs of one new task by phase, matrix products and elementwise work.

    None if a number is unknown. Runs of a method with equal ones take equal seconds per task; the
    architectures of a search per seed have others."""
    entries = [entry for phase in EACH if (entry := cost.get(phase)) and per_task(entry)]
    work = [entry.get(name) for entry in entries for name in ("flops", "flops_elementwise")]
    known = [float(value) for value in work if isinstance(value, int | float)]
    return tuple(known) if known and len(known) == len(work) else None


def phase_entry(cost: Cost, phase: str) -> Mapping[str, Any]:
    """Return one phase of a cost block; raises MissingPhase if it is absent."""
    entry = cost.get(phase)
    if entry is None:
        if phase in PHASES:
            text = "an unmeasured phase has null entries"
            raise MissingPhase(f"phase {phase!r} is missing from the cost block; {text}")
        text = f"unknown phase {phase!r} of the cost block; valid: {', '.join(PHASES)}"
        raise MissingPhase(text)
    return entry


def up_front_cost(
    cost: Cost, axis: Axis, *, tuning: bool = True, given: bool = True
) -> float | None:
    """Return the cost before any new task: tuning, pretraining, meta-training, shared search.

    Without `given`, weights that somebody else has trained are free.

    In FLOPs of matrix products and convolutions, or in seconds. `setup` (imports, data, and the
    measuring itself) and `compile` are not included, and `tune` only if `tuning`. None if a phase
    was not measured."""
    entries = [phase_entry(cost, phase) for phase in ONCE if tuning or phase != "tune"]
    entries = entries if given else [entry.get("own") or entry for entry in entries]
    up_front = [entry.get("once", {}) if per_task(entry) else entry for entry in entries]
    return _sum([entry.get(axis) for entry in up_front if entry])


def waiting_share(cost: Cost) -> float | None:
    """Return the fraction of the up-front seconds in which training waited for a core.

    0 without such seconds; None if it was not recorded."""
    entries = [entry for phase in ONCE if (entry := cost.get(phase))]
    entries = [entry.get("once") or {} if per_task(entry) else entry for entry in entries]
    pairs = [
        ((entry.get("own") or entry).get("seconds"), entry.get("seconds_waiting"))
        for entry in entries
    ]
    waiting = [waited for seconds, waited in pairs if seconds]
    if None in waiting:
        return None
    whole = sum(float(seconds) for seconds, _ in pairs if seconds)
    return sum(map(float, filter(None, waiting))) / whole if whole else 0.0


def learning_cost(cost: Cost, axis: Axis, steps: Sequence[int]) -> Array | None:
    """Return the cost per new task up to each point of a curve: [P]; None if not all was measured.

    Search, and all else before the first step, counts at every point; the rest is proportional to
    the steps. Seconds are those of a task inside a batch of tasks."""
    last = max(steps)
    fraction = np.asarray([step / last if last else 1.0 for step in steps])
    total = np.zeros(len(steps))
    for phase in LEARNING:
        entry = phase_entry(cost, phase)
        if not per_task(entry):
            continue
        full = entry.get("seconds_batched" if axis == "seconds" else "flops")
        if full is None:
            return None
        start = entry.get(f"{axis}_at_start", full)
        total += start + (full - start) * fraction
    return total


def answering_cost(cost: Cost, axis: Axis) -> float | None:
    """Return the cost of predicting the queries of one new task; None if it was not measured."""
    value = phase_entry(cost, "predict").get("seconds_batched" if axis == "seconds" else "flops")
    return None if value is None else float(value)


def prediction_parts(
    entry: Mapping[str, Any], axis: Axis, queries: int, beside: int = 0
) -> tuple[float, float] | None:
    """Return (cost of predicting for a task, without its queries; cost of one query).

    The cost is the line through those of all queries and of one. Where that of one is not known,
    the cost is divided equally among the queries and the first part is 0, except with support
    examples `beside` them in one batch (`examples_beside`), which then have equal shares. None if
    the `predict` entry has no cost."""
    whole = entry.get("seconds_batched" if axis == "seconds" else "flops")
    if whole is None:
        return None
    one = entry.get(f"{axis}_one_query")
    if one is not None and queries > 1:  # noise: no query is free, or more than its equal share
        each = min(max(0.0, (whole - one) / (queries - 1)), whole / queries)
        return whole - queries * each, each
    each = whole / (beside + queries)
    return beside * each, each


def examples_beside(normalisation: str | None, ways: int | None, shots: int | None) -> int:
    """Return the number of support examples on which the network runs again for the queries.

    Under the policy `support`, the statistics of these normalise the queries."""
    return (ways or 1) * (shots or 0) if normalisation == "support" else 0


def per_query(entry: Mapping[str, Any], queries: int, beside: int = 0) -> dict[str, Any]:
    """Return `queries`, `flops_per_query` and `seconds_per_query` of a `predict` entry per task.

    The latter are the second of `prediction_parts`."""
    axes: tuple[Axis, ...] = ("flops", "seconds")
    parts = {axis: prediction_parts(entry, axis, queries, beside) for axis in axes}
    costs = {f"{axis}_per_query": pair and pair[1] for axis, pair in parts.items()}
    return {"queries": queries, **costs}


def total_seconds(cost: Cost) -> float | None:
    """Return all seconds of a run.

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
    measured = [value for value in values if value is not None]
    return float(sum(measured)) if len(measured) == len(values) else None
