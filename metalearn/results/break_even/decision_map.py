"""Which method is the cheapest for so many new tasks, queries a task, and a target: `decision_map`.

A row whose cost before the first task is unknown, or was not measured, is no choice: it is left out
and named, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from metalearn.evaluate import targets
from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.decision.totals import Choice, decide
from metalearn.evaluate.random_effects import LEAST_SEEDS
from metalearn.results.break_even.counts import FREE_TO_US, origin
from metalearn.results.break_even.solved import point_of
from metalearn.results.costs import (
    QUERIES,
    answering_parts,
    learning,
    only_given_unknown,
    queries_of,
    timing_problem,
    up_front,
)
from metalearn.results.records import Array, Group, Json, Run
from metalearn.storage.files import read_npz

T = TypeVar("T")
TASKS = (*(base * 10**power for power in range(7) for base in (1, 3)), 10**7)


class Choices(NamedTuple):
    """The rows that can be compared at some targets, and why the others can not."""

    found: list[Choice]
    left_out: dict[str, str]  # label -> why
    unsettled: str  # why nothing is settled by these rows; empty where it may be


def choices_of(groups: Sequence[Group], metric: str, at: Sequence[float], axis: Axis) -> Choices:
    """Every row as a choice at the targets `at` of the metric."""
    found, left_out = list[Choice](), dict[str, str]()
    for group in groups:
        made = _choice(group, metric, at, axis)
        if isinstance(made, str):
            left_out[group.label] = made
        else:
            found += [made, *_shorter(group, made, metric, at, axis)]
    named = {choice.label for choice in found}
    rows = [group for group in groups if group.label in named]
    few = [group.label for group in rows if len(group.runs) < LEAST_SEEDS]
    untimed = [group.label for group in rows if any(map(timing_problem, group.runs))]
    why = f"fewer than {LEAST_SEEDS} seeds: {', '.join(few)}" if few else ""
    if axis == "seconds" and untimed and not why:
        why = f"not timed interleaved on an idle machine: {', '.join(untimed)}"
    return Choices(found, left_out, why)


def _choice(group: Group, metric: str, at: Sequence[float], axis: Axis) -> Choice | str:
    """A row as a choice; a sentence where it is none."""
    pooled = group.pooled(metric)
    if pooled is None:
        return f"no scores of {metric} for the same tasks and steps from every seed"
    costs = [_costs(run, axis) for run in group.runs]
    known = [one for one in costs if not isinstance(one, str)]
    if len(known) < len(costs):
        return next(one for one in costs if isinstance(one, str))
    up, adapt, query = (np.asarray(column, np.float64) for column in zip(*known, strict=True))
    judged = np.stack([scores[:, point_of(run)] for scores, run in zip(pooled, group.runs)])
    higher = metric == "accuracy"
    solved = np.stack([targets.reaches(judged, level, higher=higher) for level in at])
    return Choice(group.label, up, adapt, query, solved, origin(group))


def _shorter(
    group: Group, whole: Choice, metric: str, at: Sequence[float], axis: Axis
) -> list[Choice]:
    """The checkpoints along meta-training, each without what was spent after it."""
    tables = [_scores_along(run) for run in group.runs]
    scores = [table for table in tables if table is not None]
    rows = [run.result.get("along") or [] for run in group.runs]
    shapes = {(tuple(row["step"] for row in part), *t.shape) for part, t in zip(rows, scores)}
    judged = all(point_of(run) == run.headline_point for run in group.runs)
    whole_shape = whole.solved.shape[2]
    if metric != group.metric or not judged or len(scores) < len(tables) or len(shapes) > 1:
        return []
    found = []
    for place, row in enumerate(rows[0]):
        later = [part[place]["later"].get(axis) for part in rows]
        if None not in later and scores[0].shape[1] == whole_shape:
            column = np.stack([table[place] for table in scores])  # [S, E]
            solved = [targets.reaches(column, level, higher=metric == "accuracy") for level in at]
            up = whole.up_front - np.asarray(later, np.float64)
            step = int(row["step"])
            found.append(whole._replace(up_front=up, solved=np.stack(solved), step=step))
    return found


def _scores_along(run: Run) -> Array | None:
    """[K, E] of the checkpoints along meta-training; None where they were not written."""
    rows, file = run.result.get("along") or [], run.path / "along.npz"
    found = read_npz(file).get("scores") if rows and file.exists() else None
    fits = found is not None and found.ndim == 2 and len(found) == len(rows)
    return found if fits else None


def _costs(run: Run, axis: Axis) -> tuple[float, float, float] | str:
    """(before the first task, for each task, for each query); a sentence if unknown."""
    before, each, answers = up_front(run, axis), learning(run, axis), answering_parts(run, axis)
    missing = [
        name
        for name, value in (
            ("the cost before the first task", before),
            ("the cost of learning a task", each),
            ("the cost of predicting a query", answers),
        )
        if value is None
    ]
    if missing == ["the cost before the first task"] and only_given_unknown(run, axis):
        return FREE_TO_US.format(run.label)
    if missing or before is None or each is None or answers is None:
        return f"unknown or not measured: {', '.join(missing)}"
    return before, float(each[point_of(run)]) + answers[0], answers[1]


def grid_of(groups: Sequence[Group], target: Json, levels: Sequence[float]) -> list[float]:
    """Targets of the map, from the easiest to the hardest: every 5 points above chance; of a loss
    from 16 times the target down to a quarter, in factors of the root of 2; `levels` are in it."""
    value = float(target["value"])
    if target["metric"] == "accuracy":
        least = groups[0].first.chance + 0.05
        steps = [number / 20 for number in range(1, 20) if number / 20 >= least - 1e-9]
        return sorted({*steps, *levels, value, 0.98})
    scale = {value * 2 ** (number / 2) for number in range(-4, 9)}
    return sorted({*scale, *levels, value}, reverse=True)


def decision_map(
    groups: Sequence[Group], target: Json | None, levels: Sequence[float], axis: Axis
) -> Json | None:
    """`decision_map` of comparison.json; None without a target or choices.

    `winner` and `share` are [queries][targets][tasks]; `settled` as in decide, for rows of enough
    seeds; `as_tested` is the number of queries of the test's own tasks. Where checkpoints along
    meta-training were tested, `along` has their steps by label, and `stops_after` the step of the
    winner, None for its whole training."""
    if target is None or len(groups) < 2:
        return None
    at = grid_of(groups, target, levels)
    made = choices_of(groups, str(target["metric"]), at, axis)
    tested = queries_of(groups[0].first)
    if not made.found or tested is None:
        return None
    queries = sorted({*QUERIES, tested})
    found = decide(made.found, TASKS, queries)
    labels = [choice.label for choice in made.found]
    settled = found.settled & (not made.unsettled)
    along: dict[str, list[int]] = {}
    for choice in made.found:
        if choice.step is not None:
            along.setdefault(choice.label, []).append(choice.step)
    steps = [choice.step for choice in made.found]
    stops = [[[_of(steps, n) for n in row] for row in part] for part in found.winner]
    return {
        "axis": axis,
        "tasks": list(TASKS),
        "targets": at,
        "queries": queries,
        "winner": [[[_of(labels, n) for n in row] for row in part] for part in found.winner],
        **({"along": along, "stops_after": stops} if along else {}),
        "share": [[[_share(value) for value in row] for row in part] for part in found.share],
        "settled": settled.tolist(),
        "as_tested": tested,
        "metric": target["metric"],
        "left_out": made.left_out,
        "unsettled": made.unsettled,
    }


def _of(values: Sequence[T], place: int) -> T | None:
    return values[place] if place >= 0 else None


def _share(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
