"""The cheapest method for a number of new tasks: one cell of the decision map, and its border.

The same totals and the same bootstrap as `decision_map`, so that both agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.decision.totals import Candidate, decide, total_interval
from metalearn.results.break_even.decision_map import find_candidates, target_grid
from metalearn.results.records import Array, Group, Json

PLACES = 40  # numbers of tasks per power of ten, among which a border is searched
LARGEST = 7  # log10 of the most tasks; more, up to 100 times those of the question


class Question(NamedTuple):
    """The number of tasks, queries per task and target for which a method is wanted."""

    tasks: int
    queries: int
    target: float
    axis: Axis


class Border(NamedTuple):
    """The nearest question for which another method is the cheapest one."""

    what: str  # tasks | target
    value: float
    label: str | None  # None: no method reaches that target


class Recommendation(NamedTuple):
    """The cheapest method of a question; None where no method reaches the target."""

    question: Question
    left_out: dict[str, str]  # label -> why it is not a candidate
    unsettled: str  # why rows of these seeds settle nothing; empty where they may
    has_totals: bool = True  # whether the costs of any method are known
    label: str | None = None
    total: float | None = None
    interval: tuple[float, float] | None = None  # 95 %; None with one seed
    share: float | None = None  # of draws in which it alone is the cheapest
    solved: float | None = None  # fraction of the test tasks that it solves
    runner_up: str | None = None
    runner_up_total: float | None = None
    runner_up_step: int | None = None  # as `step`
    border: Border | None = None
    settled: bool = False  # whether the data settle that it is the cheapest, or that none is
    step: int | None = None  # after which its meta-training stops; None: all of it


def recommend(
    groups: Sequence[Group], target: Json, levels: Sequence[float], question: Question
) -> Recommendation:
    """Return the cheapest method; `target` and `levels` are those of the comparison."""
    metric = str(target["metric"])
    candidates = find_candidates(groups, metric, [question.target], question.axis)
    nothing = Recommendation(question, left_out=candidates.left_out, unsettled=candidates.unsettled)
    if not candidates.members:
        return nothing._replace(has_totals=False)
    decision = decide(candidates.members, [question.tasks], [question.queries])
    cells: Array = decision.totals[:, 0, 0, 0]
    place = int(decision.winner[0, 0, 0])
    border = _border(groups, target, levels, question, candidates.members, place)
    settled = bool(decision.settled[0, 0, 0]) and not candidates.unsettled
    if place < 0:
        return nothing._replace(border=border, settled=settled)
    order = [int(n) for n in np.argsort(cells, kind="stable") if np.isfinite(cells[n])]
    best = candidates.members[place]
    other = next((n for n in order if candidates.members[n].label != best.label), None)
    return nothing._replace(
        label=best.label,
        step=best.step,
        total=float(cells[place]),
        interval=total_interval(best, question.tasks, question.queries),
        share=float(decision.share[0, 0, 0]),
        solved=float(best.solved.mean()),
        settled=settled,
        runner_up=None if other is None else candidates.members[other].label,
        runner_up_total=None if other is None else float(cells[other]),
        runner_up_step=None if other is None else candidates.members[other].step,
        border=border,
    )


def _border(
    groups: Sequence[Group],
    target: Json,
    levels: Sequence[float],
    question: Question,
    candidates: Sequence[Candidate],
    place: int,
) -> Border | None:
    """Return the nearest change of the winner along tasks, in factors; else along targets.

    The totals that cross are those of the checkpoints on both sides of the border."""
    if place >= 0:
        last = max(LARGEST, math.ceil(math.log10(question.tasks)) + 2)
        grid = np.logspace(0, last, PLACES * last + 1)
        numbers = np.unique(np.concatenate([grid, [question.tasks]]))
        winners = decide(candidates, numbers, [question.queries], draws=1).winner[0, 0]
        names = np.asarray([one.label for one in candidates])
        others = np.flatnonzero(names[winners] != names[place])
        if others.size:
            far = np.abs(np.log(numbers[others]) - np.log(question.tasks))
            near = int(others[far.argmin()])
            inner = int(winners[near - 1 if numbers[near] > question.tasks else near + 1])
            value = _crossing(candidates, inner, int(winners[near]), question.queries)
            label = candidates[int(winners[near])].label
            return Border("tasks", value or float(numbers[near]), label)
    return _target_border(groups, target, levels, question, candidates, place)


def _target_border(
    groups: Sequence[Group],
    target: Json,
    levels: Sequence[float],
    question: Question,
    members: Sequence[Candidate],
    place: int,
) -> Border | None:
    at = target_grid(groups, target, levels)
    candidates = find_candidates(groups, str(target["metric"]), at, question.axis)
    decision = decide(candidates.members, [question.tasks], [question.queries], draws=1)
    winners = decision.winner[0, :, 0]
    mine = members[place].label if place >= 0 else None
    names = [candidates.members[int(n)].label if n >= 0 else None for n in winners]
    others = [(abs(level - question.target), level, name) for level, name in zip(at, names)]
    borders = [(level, name) for _, level, name in sorted(others) if name != mine]
    return Border("target", *borders[0]) if borders else None


def _crossing(
    candidates: Sequence[Candidate], one: int, other: int, queries: float
) -> float | None:
    """Return the number of tasks at which two totals are equal, or None if it is not positive."""
    pair = [candidates[one], candidates[other]]
    up = [float(candidate.up_front.mean()) for candidate in pair]
    each = [
        float((candidate.adapt + queries * candidate.query).mean()) / float(candidate.solved.mean())
        for candidate in pair
    ]
    if each[0] == each[1]:
        return None
    value = (up[0] - up[1]) / (each[1] - each[0])
    return value if value > 0 else None
