"""Costs of runs other than FLOPs and seconds: steps, examples, labels, memory, energy."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.evaluate.cost_block import EACH, ONCE, per_task
from metalearn.results.records import Group, Json, Run, mean

BEFORE = ("tune", "search", "pretrain", "meta_train")  # phases of all tasks together
# Phases with labels in the table of work. Trials of tuning draw labels too, but few methods count
# these, so none has them in its number.
LABELLED = ("search", "pretrain", "meta_train")


def gradient_steps_before(group: Group) -> float | None:
    """Return the gradient steps before any new task, or None if none were counted.

    They are those of tuning, search, pretraining and meta-training."""
    return _sum([group.once(phase, "gradient_steps") for phase in BEFORE])


def work(group: Group) -> Json:
    """Return peak memory, energy and counts, means over seeds; None for what was not measured.

    They are those up front and of one new task."""
    peaks = [entry.get("peak_bytes") for run in group.runs for entry in run.cost.values() if entry]
    beforehand = _beforehand(group, "candidates")
    return {
        "peak_bytes": max((peak for peak in peaks if peak), default=None),
        "energy": mean([energy(run) for run in group.runs]),
        **{name: _beforehand(group, name) for name in ("gradient_steps", "examples")},
        "labels": _beforehand(group, "labels", LABELLED),
        "labels_each": _largest(_of_new_tasks(group, "labels")),
        "candidates": _largest([*_of_new_tasks(group, "candidates"), beforehand]),
    }


def energy(run: Run) -> float | None:
    """Return the joules of all measured phases.

    Those of new tasks count once per task."""
    once_entries = [entry["once"] for entry in run.cost.values() if entry and entry.get("once")]
    joules = [
        entry["energy_joules"] * (entry.get("tasks", 0) if per_task(entry) else 1)
        for entry in [*run.cost.values(), *once_entries]
        if entry and entry.get("energy_joules") is not None
    ]
    return sum(joules) if joules else None


def _beforehand(group: Group, name: str, phases: Sequence[str] = ONCE) -> float | None:
    counts = [[_entries(run, phase)[0].get(name, 0) for run in group.runs] for phase in phases]
    return _sum([mean(values) for values in counts])


def _of_new_tasks(group: Group, name: str) -> list[float | None]:
    return [mean([_entries(run, phase)[1].get(name, 0) for run in group.runs]) for phase in EACH]


def _entries(run: Run, phase: str) -> tuple[Json, Json]:
    """Return (one-time cost, cost of one new task) of a phase; empty if it has none of that
    kind."""
    entry = run.phase(phase)
    if not per_task(entry):
        return entry, {}
    return entry.get("once") or {}, entry


def _sum(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
