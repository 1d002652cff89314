"""The cheapest method by number of new tasks, queries per task, and target: `decision_map`.

A row whose cost before the first task is unknown, or was not measured, is not a candidate: it is
excluded and named, with the reason. If rows start from weights that others trained, a second map,
`decision_map_free`, leaves out the cost of that training, which its user does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from metalearn.evaluate import targets
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.decision.totals import Candidate, Decision, decide
from metalearn.evaluate.random_effects import LEAST_SEEDS
from metalearn.results.break_even.counts import UNPUBLISHED, origin
from metalearn.results.break_even.missing import describe_missing
from metalearn.results.break_even.solved import point_of
from metalearn.results.costs import (
    QUERIES,
    learning_cost,
    only_pretraining_unknown,
    prediction_cost_parts,
    query_count,
    up_front_cost,
    uses_pretrained_weights,
)
from metalearn.results.design.timing import seconds_problems, timing_covariances
from metalearn.results.records import Array, Group, Json, Run
from metalearn.storage.files import read_npz

T = TypeVar("T")
# Key of comparison.json -> (axis, whether costs include that of training weights elsewhere).
MAPS: dict[str, tuple[Axis, bool]] = {
    "decision_map": ("flops", True),
    "decision_map_seconds": ("seconds", True),
    "decision_map_free": ("flops", False),
    "decision_map_seconds_free": ("seconds", False),
}
TASKS = (*(base * 10**power for power in range(7) for base in (1, 3)), 10**7)


class Candidates(NamedTuple):
    """The rows that can be compared at some targets, and why the others cannot."""

    members: list[Candidate]
    left_out: dict[str, str]  # label -> why
    unsettled: str  # why nothing is settled by these rows; empty where it may be


def find_candidates(
    groups: Sequence[Group],
    metric: str,
    at: Sequence[float],
    axis: Axis,
    pretraining: bool = True,
) -> Candidates:
    """Return every row as a candidate at the targets `at` of the metric.

    Without `pretraining`, the training of weights elsewhere costs nothing."""
    candidates, left_out = list[Candidate](), dict[str, str]()
    for group in groups:
        candidate = _candidate(group, metric, at, axis, pretraining)
        if isinstance(candidate, str):
            left_out[group.label] = candidate
        else:
            candidates += [candidate, *_checkpoints(group, candidate, metric, at, axis)]
    labels = {candidate.label for candidate in candidates}
    rows = [group for group in groups if group.label in labels]
    few = [group.label for group in rows if len(group.runs) < LEAST_SEEDS]
    untimed = list(seconds_problems(rows)) if axis == "seconds" else []
    why = f"fewer than {LEAST_SEEDS} seeds: {', '.join(few)}" if few else ""
    why = "; ".join(filter(None, [why, *map(describe_missing, rows)]))
    if untimed and not why:
        why = f"seconds that allow no verdict (see the checks): {', '.join(untimed)}"
    return Candidates(candidates, left_out, why)


def _candidate(
    group: Group, metric: str, at: Sequence[float], axis: Axis, pretraining: bool
) -> Candidate | str:
    """Return a row as a candidate, or a sentence that says why it is none."""
    table = group.pooled_scores(metric)
    if table is None:
        return f"no scores of {metric} for the same tasks and steps from every seed"
    costs = [_costs(run, axis, pretraining) for run in group.runs]
    known_costs = [one for one in costs if not isinstance(one, str)]
    if len(known_costs) < len(costs):
        return next(one for one in costs if isinstance(one, str))
    up, adapt, query = (np.asarray(column, np.float64) for column in zip(*known_costs, strict=True))
    step_scores = np.stack([scores[:, point_of(run)] for scores, run in zip(table, group.runs)])
    higher = metric == "accuracy"
    solved = np.stack([targets.reaches(step_scores, level, higher=higher) for level in at])
    timing = timing_covariances(group, _timed) if axis == "seconds" else ()
    seeds = tuple(run.seed for run in group.runs)
    candidate = Candidate(group.label, up, adapt, query, solved, origin(group))
    return candidate._replace(timing=timing, seeds=seeds)


def _timed(run: Run) -> tuple[float, float] | None:
    """Return the seconds per task and per query of a run; None if they are not known."""
    costs = _costs(run, "seconds", pretraining=False)
    return None if isinstance(costs, str) else costs[1:]


def _checkpoints(
    group: Group, candidate: Candidate, metric: str, at: Sequence[float], axis: Axis
) -> list[Candidate]:
    """Return the checkpoints along meta-training, each without the cost that came after it."""
    tables = [_scores_along(run) for run in group.runs]
    scores = [table for table in tables if table is not None]
    rows = [run.result.get("along") or [] for run in group.runs]
    shapes = {(tuple(row["step"] for row in part), *t.shape) for part, t in zip(rows, scores)}
    at_headline = all(point_of(run) == run.headline_point for run in group.runs)
    whole_shape = candidate.solved.shape[2]
    if metric != group.metric or not at_headline or len(scores) < len(tables) or len(shapes) > 1:
        return []
    candidates = []
    for place, row in enumerate(rows[0]):
        later = [part[place]["later"].get(axis) for part in rows]
        if None not in later and scores[0].shape[1] == whole_shape:
            column = np.stack([table[place] for table in scores])  # [S, E]
            solved = [targets.reaches(column, level, higher=metric == "accuracy") for level in at]
            up = candidate.up_front - np.asarray(later, np.float64)
            step = int(row["step"])
            candidates.append(candidate._replace(up_front=up, solved=np.stack(solved), step=step))
    return candidates


def _scores_along(run: Run) -> Array | None:
    """Return scores [K, E] of the checkpoints along meta-training, or None if there are none."""
    rows, file = run.result.get("along") or [], run.path / "along.npz"
    scores = read_npz(file).get("scores") if rows and file.exists() else None
    fits = scores is not None and scores.ndim == 2 and len(scores) == len(rows)
    return scores if fits else None


def _costs(run: Run, axis: Axis, pretraining: bool) -> tuple[float, float, float] | str:
    """Return (before the first task, per task, per query), or a sentence if one is unknown."""
    before, each, answers = (
        up_front_cost(run, axis, pretraining=pretraining),
        learning_cost(run, axis),
        prediction_cost_parts(run, axis),
    )
    missing = [
        name
        for name, value in (
            ("the cost before the first task", before),
            ("the cost of learning a task", each),
            ("the cost of predicting a query", answers),
        )
        if value is None
    ]
    if missing == ["the cost before the first task"] and only_pretraining_unknown(run, axis):
        return UNPUBLISHED.format(run.label)
    if missing or before is None or each is None or answers is None:
        return f"unknown or not measured: {', '.join(missing)}"
    return before, float(each[point_of(run)]) + answers[0], answers[1]


def target_grid(groups: Sequence[Group], target: Json, levels: Sequence[float]) -> list[float]:
    """Return the targets of the map, from the easiest to the hardest, with `levels` among them.

    They are multiples of 5 points from `least_level` up; for a loss, from 16 times the target down
    to a quarter of it, in factors of the square root of 2."""
    value = float(target["value"])
    if target["metric"] == "accuracy":
        least = targets.least_level(groups[0].first.chance)
        steps = [number / 20 for number in range(1, 20) if number / 20 >= least - 1e-9]
        return sorted({*steps, *levels, value, 0.98})
    scale = {value * 2 ** (number / 2) for number in range(-4, 9)}
    return sorted({*scale, *levels, value}, reverse=True)


def decision_maps(
    groups: Sequence[Group], target: Json | None, levels: Sequence[float]
) -> dict[str, Json | None]:
    """Return the maps of comparison.json; those of free pretraining only if rows started from
    weights that others trained."""
    free = any(uses_pretrained_weights(run) for group in groups for run in group.runs)
    return {
        name: decision_map(groups, target, levels, axis, pretraining)
        for name, (axis, pretraining) in MAPS.items()
        if free or pretraining
    }


def decision_map(
    groups: Sequence[Group],
    target: Json | None,
    levels: Sequence[float],
    axis: Axis,
    pretraining: bool = True,
) -> Json | None:
    """Return `decision_map` of comparison.json, or None without a target or candidates.

    `winner` and `share` are [queries][targets][tasks]; `settled` as in `decide`, for rows with
    enough seeds; `as_tested` is the number of queries of the test's own tasks. If checkpoints along
    meta-training were tested, `along` has their steps by label, and `stops_after` the step of the
    winner, None for its whole training."""
    if target is None or len(groups) < 2:
        return None
    at = target_grid(groups, target, levels)
    candidates = find_candidates(groups, str(target["metric"]), at, axis, pretraining)
    test_queries = query_count(groups[0].first)
    if not candidates.members or test_queries is None:
        return None
    queries = sorted({*QUERIES, test_queries})
    decision = decide(candidates.members, TASKS, queries)
    labels = [member.label for member in candidates.members]
    settled = decision.settled & (not candidates.unsettled)
    return {
        "axis": axis,
        "tasks": list(TASKS),
        "targets": at,
        "queries": queries,
        "winner": [[[_of(labels, n) for n in row] for row in part] for part in decision.winner],
        **_stops(candidates.members, decision),
        "share": [[[_share(value) for value in row] for row in part] for part in decision.share],
        "settled": settled.tolist(),
        "as_tested": test_queries,
        "metric": target["metric"],
        "left_out": candidates.left_out,
        "unsettled": candidates.unsettled,
        **({} if pretraining else {"pretraining": "free"}),
    }


def _stops(members: Sequence[Candidate], decision: Decision) -> Json:
    """Return `along` and `stops_after` of a map; empty without checkpoints of meta-training."""
    along: dict[str, list[int]] = {}
    for member in members:
        if member.step is not None:
            along.setdefault(member.label, []).append(member.step)
    steps = [member.step for member in members]
    stops = [[[_of(steps, n) for n in row] for row in part] for part in decision.winner]
    return {"along": along, "stops_after": stops} if along else {}


def _of(values: Sequence[T], place: int) -> T | None:
    return values[place] if place >= 0 else None


def _share(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
