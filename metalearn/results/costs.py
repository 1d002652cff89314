"""What finished runs cost: readings of the ledgers in their result.json."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.evaluate import cost_block, pareto, stats
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.ledger import PHASES, MissingPhase
from metalearn.evaluate.random_effects import LEAST_SEEDS
from metalearn.results.records import Array, Group, Json, Run, mean

AXES: tuple[Axis, ...] = ("flops", "seconds")
QUERIES = (1, 100, 10_000)  # a task, for which costs are compared beside those of the test
BUSY = 0.1  # share of the cores' time taken by others, above which seconds decide nothing


def is_given(run: Run) -> bool:
    """Whether somebody else has trained the weights that it starts from."""
    return bool(run.result.get("provenance"))


def only_given_unknown(run: Run, axis: Axis) -> bool:
    """Whether all is known of the cost up front but what somebody else paid for given weights."""
    free = up_front(run, axis, given=False)
    return is_given(run) and up_front(run, axis) is None and free is not None


def learning(run: Run, axis: Axis) -> Array | None:
    """Cost of learning one new task up to each point [P]; None where it was not measured."""
    try:
        return cost_block.learning_cost(run.cost, axis, run.steps)
    except MissingPhase:
        return None


def up_front(run: Run, axis: Axis, *, tuning: bool = True, given: bool = True) -> float | None:
    """Cost before any new task, with or without tuning and what was paid for given weights.

    None where it was not measured."""
    try:
        return cost_block.up_front_cost(run.cost, axis, tuning=tuning, given=given)
    except MissingPhase:
        return None


def answering(run: Run, axis: Axis, queries: int | None = None) -> float | None:
    """Cost of answering so many queries of one task, by default those of the test; None where it
    was not measured."""
    try:
        whole = cost_block.answering_cost(run.cost, axis)
    except MissingPhase:
        return None
    if queries is None or whole is None:
        return whole
    parts = answering_parts(run, axis)
    return None if parts is None else parts[0] + queries * parts[1]


def answering_parts(run: Run, axis: Axis) -> tuple[float, float] | None:
    """(cost of answering a task whatever the number of queries, cost of one query).

    Under the policy `support` a network runs over the support set again beside the queries, whose
    statistics normalise: the measured cost is shared by all these examples alike. Elsewhere the
    first part is 0. None where a part is not known."""
    whole, queries = answering(run, axis), queries_of(run)
    if whole is None or queries is None:
        return None
    beside = run.result.get("normalisation") == "support"
    support = int(run.task.get("ways") or 1) * int(run.task.get("shots") or 0) if beside else 0
    each = whole / (support + queries)
    return support * each, each


def queries_of(run: Run) -> int | None:
    """The queries of one test task."""
    entry = run.phase("predict").get("queries")
    if entry:
        return int(entry)
    return int(run.task.get("ways") or 1) * int(run.task.get("queries") or 0) or None


def total(group: Group, axis: Axis, tasks: int) -> float | None:
    """Cost up front and of so many new tasks up to the headline step, mean over seeds."""
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


def total_interval(group: Group, axis: Axis, tasks: int) -> pareto.Ends | None:
    """The 95 % t interval of `total` over seeds; of one seed, its own total twice."""
    value = total(group, axis, tasks)
    if value is None:
        return None
    each = [total(Group(group.label, [run]), axis, tasks) for run in group.runs]
    half = stats.seeds_ci95(each) or 0.0
    return value - half, value + half


def total_cost(groups: Sequence[Group], tasks: int, paired: Sequence[Json] = ()) -> list[Json]:
    """The `total_cost` rows of comparison.json: everything beforehand and so many new tasks.

    `on_front`: no other label is at most as dear and at least as good, by the means. `front`: the
    same decided by 95 % intervals of costs and of `paired` differences; `ci95` of each cost."""
    fronts = {axis: on_front(groups, axis, tasks) for axis in AXES}
    ends = {axis: [total_interval(group, axis, tasks) for group in groups] for axis in AXES}
    return [
        {
            "label": group.label,
            "tasks": tasks,
            **{axis: total(group, axis, tasks) for axis in AXES},
            "ci95": {axis: _list(ends[axis][place]) for axis in AXES},
            "on_front": {axis: fronts[axis][place] for axis in AXES},
            "front": {axis: _front(groups, place, ends[axis], paired) for axis in AXES},
        }
        for place, group in enumerate(groups)
    ]


def _list(ends: pareto.Ends | None) -> list[float] | None:
    return None if ends is None else list(ends)


def _front(
    groups: Sequence[Group], place: int, ends: Sequence[pareto.Ends | None], paired: Sequence[Json]
) -> pareto.Place | None:
    """Decided by rows of LEAST_SEEDS seeds alone: other intervals do not hold for new seeds."""
    if ends[place] is None:
        return None
    rivals = [
        (len(group.runs) >= LEAST_SEEDS, ends[other], _better_by(group, groups[place], paired))
        for other, group in enumerate(groups)
        if other != place and ends[other] is not None
    ]
    found = pareto.place_by_interval(
        ends[place], [(cost, apart) for enough, cost, apart in rivals if enough]
    )
    few = [] if found == "off" else [enough for enough, *_ in rivals if not enough]
    return "open" if few or len(groups[place].runs) < LEAST_SEEDS else found


def _better_by(other: Group, group: Group, paired: Sequence[Json]) -> pareto.Ends | None:
    """The interval by which `other` is better than `group`; None where it is not known."""
    names = {other.label, group.label}
    entry = next((one for one in paired if {one["a"], one["b"]} == names), None)
    if entry is None or entry["ci95"] is None:
        return None
    low, high = entry["ci95"]
    return (low, high) if (entry["a"] == other.label) == group.higher_better else (-high, -low)


def timing_problem(run: Run) -> str:
    """Why the seconds of a run's new tasks are no ground for a verdict; empty where they are."""
    timing = run.result.get("timing")
    if timing is None:
        return "not timed again after training"
    if timing.get("others") is None:
        return "the load by other processes is unknown"
    if timing["others"] > BUSY:
        return f"other processes used {timing['others']:.0%} of the cores"
    return ""


def missing_phases(run: Run) -> list[str]:
    """Phases that the cost block lacks, or whose seconds or FLOPs were not measured."""
    found = []
    for phase in PHASES:
        entry = run.cost.get(phase)
        if entry is None and phase in cost_block.NOT_IN_OLD:
            continue
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
    # imports have no FLOPs to count; of given weights, what this run spent itself counts
    spent = entry.get("own") or entry
    return spent.get(name) is None and not (phase in ("setup", "compile") and name == "flops")


def whole_seconds(run: Run) -> float | None:
    try:
        return cost_block.total_seconds(run.cost)
    except MissingPhase:
        return None
