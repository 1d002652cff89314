"""Costs of finished runs, from the ledgers in their result.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from metalearn.evaluate import cost_block, pareto
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.ledger import PHASES, MissingPhase
from metalearn.evaluate.random_effects import LEAST_SEEDS, LEVEL, satterthwaite
from metalearn.evaluate.statistics.students_t import t_quantile
from metalearn.results.contrasts import is_different
from metalearn.results.design.timing import seconds_problems, timing_covariances
from metalearn.results.records import Array, Group, Json, Run, mean

AXES: tuple[Axis, ...] = ("flops", "seconds")
QUERIES = (1, 100, 10_000)  # per task, for which costs are compared in addition to the test's


def uses_pretrained_weights(run: Run) -> bool:
    """Return whether a run starts from weights that were trained elsewhere."""
    return bool(run.result.get("provenance"))


def only_pretraining_unknown(run: Run, axis: Axis) -> bool:
    """Return whether the cost of pretrained weights is the only unknown cost up front."""
    free = up_front_cost(run, axis, pretraining=False)
    return uses_pretrained_weights(run) and up_front_cost(run, axis) is None and free is not None


def learning_cost(run: Run, axis: Axis) -> Array | None:
    """Return the cost of learning one new task up to each point [P], or None if not measured."""
    try:
        return cost_block.learning_cost(run.cost, axis, run.steps)
    except MissingPhase:
        return None


def up_front_cost(
    run: Run, axis: Axis, *, tuning: bool = True, pretraining: bool = True
) -> float | None:
    """Return the cost before any new task, or None if it was not measured.

    `tuning` and `pretraining` (elsewhere, of pretrained weights) say whether it includes these."""
    try:
        return cost_block.up_front_cost(run.cost, axis, tuning=tuning, given=pretraining)
    except MissingPhase:
        return None


def prediction_cost(run: Run, axis: Axis, queries: int | None = None) -> float | None:
    """Return the cost of predicting a number of queries of one task, or None if not measured.

    `queries` defaults to those of the test."""
    try:
        whole = cost_block.answering_cost(run.cost, axis)
    except MissingPhase:
        return None
    if queries is None or whole is None:
        return whole
    parts = prediction_cost_parts(run, axis)
    return None if parts is None else parts[0] + queries * parts[1]


def prediction_cost_parts(run: Run, axis: Axis) -> tuple[float, float] | None:
    """Return (cost of predicting for a task, without its queries; cost of one query).

    None if a part is not known; see `cost_block.prediction_parts`."""
    queries, facts = query_count(run), (run.task.get("ways"), run.task.get("shots"))
    if queries is None:
        return None
    beside = cost_block.examples_beside(run.result.get("normalisation"), *facts)
    return cost_block.prediction_parts(run.phase("predict"), axis, queries, beside)


def query_count(run: Run) -> int | None:
    """Return the number of queries of one test task."""
    entry = run.phase("predict").get("queries")
    if entry:
        return int(entry)
    return int(run.task.get("ways") or 1) * int(run.task.get("queries") or 0) or None


def total(group: Group, axis: Axis, tasks: int, *, tuning: bool = True) -> float | None:
    """Return the cost up front and of a number of new tasks, to the headline step, mean over
    seeds."""
    totals = []
    for run in group.runs:
        before, each = up_front_cost(run, axis, tuning=tuning), learning_cost(run, axis)
        if before is None or each is None:
            return None
        totals.append(before + tasks * float(each[run.headline_point]))
    return mean(totals)


def on_front(groups: Sequence[Group], axis: Axis, tasks: int) -> list[bool]:
    costs = [total(group, axis, tasks) for group in groups]
    return pareto.front(costs, [group.value() for group in groups], higher=groups[0].higher_better)


def total_interval(
    group: Group, axis: Axis, tasks: int, *, tuning: bool = True
) -> pareto.Ends | None:
    """Return the 95 % t interval of `total` over seeds; for one seed, its own total twice.

    That of seconds includes the variance of timing."""
    each = [total(Group(group.label, [run]), axis, tasks, tuning=tuning) for run in group.runs]
    totals = [value for value in each if value is not None]
    if len(totals) < len(each):
        return None
    value, count = statistics.fmean(totals), len(totals)
    if count == 1:
        return value, value
    parts: list[tuple[float, float]] = [(float(np.var(totals, ddof=1)) / count, count - 1.0)]
    if axis == "seconds":
        covariances = timing_covariances(group, _seconds_to_headline)
        parts += [(tasks**2 * float(table[0, 0]), freedom) for table, freedom in covariances]
    variance = np.asarray(sum(part for part, _ in parts))
    quantile = t_quantile((1 + LEVEL) / 2, satterthwaite(variance, parts))
    half = float(quantile * np.sqrt(variance))
    return value - half, value + half


def _seconds_to_headline(run: Run) -> list[float] | None:
    seconds = learning_cost(run, "seconds")
    return None if seconds is None else [float(seconds[run.headline_point])]


def total_cost(groups: Sequence[Group], tasks: int, pairs: Sequence[Json] = ()) -> list[Json]:
    """Return the `total_cost` rows of comparison.json: up-front cost and that of `tasks` new tasks.

    `on_front`: no other label is both at most as expensive and at least as good, by the means.
    `front`: the same decided by 95 % intervals of costs and of `paired` differences, with and
    without the cost of tuning; `ci95` of each cost."""
    fronts = {axis: on_front(groups, axis, tasks) for axis in AXES}
    ends = {axis: [total_interval(group, axis, tasks) for group in groups] for axis in AXES}
    untuned = {
        axis: [total_interval(group, axis, tasks, tuning=False) for group in groups]
        for axis in AXES
    }
    decisive = {axis: _decisive_labels(groups, axis) for axis in AXES}
    return [
        {
            "label": group.label,
            "tasks": tasks,
            **{axis: total(group, axis, tasks) for axis in AXES},
            "ci95": {axis: _list(ends[axis][place]) for axis in AXES},
            "on_front": {axis: fronts[axis][place] for axis in AXES},
            "front": {
                axis: _agreed(
                    _front(groups, place, costs, pairs, decisive[axis])
                    for costs in (ends[axis], untuned[axis])
                )
                for axis in AXES
            },
        }
        for place, group in enumerate(groups)
    ]


def _agreed(places: Iterable[pareto.Place | None]) -> pareto.Place | None:
    """Return the place if it is the same with and without tuning, as numbers of trials differ."""
    first, *others = places
    return first if all(other == first for other in others) else "open"


def _list(ends: pareto.Ends | None) -> list[float] | None:
    return None if ends is None else list(ends)


def _front(
    groups: Sequence[Group],
    place: int,
    ends: Sequence[pareto.Ends | None],
    pairs: Sequence[Json],
    decisive: frozenset[str],
) -> pareto.Place | None:
    """Decide by rows whose intervals hold for new seeds; of the others, nothing is known."""
    if ends[place] is None:
        return None
    rivals = [
        (ends[other], _better_by(group, groups[place], pairs))
        if group.label in decisive
        else (None, None)
        for other, group in enumerate(groups)
        if other != place
    ]
    verdict = pareto.place_by_interval(ends[place], rivals)
    return verdict if groups[place].label in decisive else "open"


def _decisive_labels(groups: Sequence[Group], axis: Axis) -> frozenset[str]:
    """Return the methods with enough seeds, and with seconds that allow verdicts."""
    untimed = seconds_problems(groups) if axis == "seconds" else {}
    labels = (group.label for group in groups if len(group.runs) >= LEAST_SEEDS)
    return frozenset(label for label in labels if label not in untimed)


def _better_by(other: Group, group: Group, pairs: Sequence[Json]) -> pareto.Ends | None:
    """Return the interval by which `other` is better than `group`, or None if it is not known.

    A difference is known to be one if it is that of a contrast with Holm's p of at most
    SIGNIFICANT."""
    names = {other.label, group.label}
    entry = next((one for one in pairs if {one["a"], one["b"]} == names), None)
    if entry is None or entry["ci95"] is None or not is_different(entry):
        return None
    low, high = entry["ci95"]
    return (low, high) if (entry["a"] == other.label) == group.higher_better else (-high, -low)


def missing_phases(run: Run) -> list[str]:
    """Return the phases that the cost block lacks, or whose seconds or FLOPs were not measured."""
    missing = []
    for phase in PHASES:
        entry = run.cost.get(phase)
        if entry is None and phase in cost_block.NOT_IN_OLD:
            continue
        if entry is None:
            missing.append(phase)
        else:
            missing += [
                f"{phase}.{name}"
                for name in ("seconds", "flops")
                if _is_unmeasured(phase, name, entry)
            ]
    return missing


def _is_unmeasured(phase: str, name: str, entry: Json) -> bool:
    # imports have no FLOPs to count; of pretrained weights, only the cost in this run counts
    own_cost = entry.get("own") or entry
    return own_cost.get(name) is None and not (phase in ("setup", "compile") and name == "flops")


def total_seconds(run: Run) -> float | None:
    try:
        return cost_block.total_seconds(run.cost)
    except MissingPhase:
        return None
