"""What finished runs cost: readings of the ledgers in their result.json."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.evaluate import cost_block, pareto
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.ledger import PHASES, MissingPhase
from metalearn.results.records import Array, Group, Json, Run, mean

AXES: tuple[Axis, ...] = ("flops", "seconds")


def learning(run: Run, axis: Axis) -> Array | None:
    """Cost of learning one new task up to each point [P]; None where it was not measured."""
    try:
        return cost_block.learning_cost(run.cost, axis, run.steps)
    except MissingPhase:
        return None


def up_front(run: Run, axis: Axis, *, tuning: bool = True) -> float | None:
    """Cost before any new task, with or without tuning; None where it was not measured."""
    try:
        return cost_block.up_front_cost(run.cost, axis, tuning=tuning)
    except MissingPhase:
        return None


def answering(run: Run, axis: Axis) -> float | None:
    try:
        return cost_block.answering_cost(run.cost, axis)
    except MissingPhase:
        return None


def total(group: Group, axis: Axis, tasks: int) -> float | None:
    """Everything beforehand and learning so many new tasks up to the headline step, mean over
    seeds.
    """
    found = []
    for run in group.runs:
        before, each = up_front(run, axis), learning(run, axis)
        if before is None or each is None:
            return None
        found.append(before + tasks * float(each[run.headline_point]))
    return mean(found)


def on_front(groups: Sequence[Group], axis: Axis, tasks: int) -> list[bool]:
    costs = [total(group, axis, tasks) for group in groups]
    return pareto.front(costs, [group.value() for group in groups], higher=groups[0].higher_better)


def total_cost(groups: Sequence[Group], tasks: int) -> list[Json]:
    """The `total_cost` rows of comparison.json: everything beforehand and so many new tasks.

    `on_front`: no other label is at most as dear and at least as good.
    """
    fronts = {axis: on_front(groups, axis, tasks) for axis in AXES}
    return [
        {
            "label": group.label,
            "tasks": tasks,
            **{axis: total(group, axis, tasks) for axis in AXES},
            "on_front": {axis: fronts[axis][place] for axis in AXES},
        }
        for place, group in enumerate(groups)
    ]


def missing_phases(run: Run) -> list[str]:
    """Phases that the cost block lacks, or whose seconds or FLOPs were not measured."""
    found = []
    for phase in PHASES:
        entry = run.cost.get(phase)
        if entry is None:
            found.append(phase)
        else:
            found += [
                f"{phase}.{name}"
                for name in ("seconds", "flops")
                if _unmeasured(phase, name, entry)
            ]
    return found


def _unmeasured(phase: str, name: str, entry: Json) -> bool:
    return entry.get(name) is None and not (
        phase == "setup" and name == "flops"
    )  # imports have no FLOPs to count


def whole_seconds(run: Run) -> float | None:
    try:
        return cost_block.total_seconds(run.cost)
    except MissingPhase:
        return None
