"""The cheapest method for a number of new tasks: one cell of the decision map, and its border.

The same totals and the same bootstrap as `decision_map`, so that both agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.decision.totals import (
    ROUNDING,
    Candidate,
    cheapest,
    decide,
    total_interval,
)
from metalearn.results.break_even.decision_map import Candidates, find_candidates, target_grid
from metalearn.results.costs import uses_pretrained_weights
from metalearn.results.records import Array, Group, Json

PLACES = 40  # numbers per power of ten, among which a border is searched
# log10 of the most tasks and queries; more, up to 100 times those of the question
LARGEST = {"tasks": 7, "queries": 4}


class Question(NamedTuple):
    """The number of tasks, queries per task and target for which a method is wanted."""

    tasks: int
    queries: int
    target: float
    axis: Axis


class Border(NamedTuple):
    """The nearest question of one kind for which another method is the cheapest one."""

    what: Literal["tasks", "queries", "target"]
    value: float
    label: str | None  # None: no method reaches that target


class Problem(NamedTuple):
    """A question and the results that answer it."""

    groups: Sequence[Group]
    target: Json  # of the comparison
    levels: Sequence[float]
    question: Question
    pretraining: bool  # whether costs include that of training weights elsewhere

    def candidates(self, at: Sequence[float]) -> Candidates:
        metric, axis = str(self.target["metric"]), self.question.axis
        return find_candidates(self.groups, metric, at, axis, self.pretraining)


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
    borders: tuple[Border, ...] = ()  # the nearest along tasks, queries and targets
    settled: bool = False  # whether the data settle that it is the cheapest, or that none is
    step: int | None = None  # after which its meta-training stops; None: all of it
    free: Recommendation | None = None  # without pretraining elsewhere; None: no row has such
    pretrained: tuple[str, ...] = ()  # labels of rows that start from weights that others trained

    @property
    def border(self) -> Border | None:
        """The nearest border along tasks; if there is none, along queries, then targets."""
        return self.borders[0] if self.borders else None


def recommend(
    groups: Sequence[Group], target: Json, levels: Sequence[float], question: Question
) -> Recommendation:
    """Return the cheapest method; `target` and `levels` are those of the comparison.

    If rows start from weights that others trained, `free` is the recommendation if that training
    costs nothing."""
    found = _recommend(Problem(groups, target, levels, question, pretraining=True))
    pretrained = [
        group.label for group in groups if any(uses_pretrained_weights(run) for run in group.runs)
    ]
    if not pretrained:
        return found
    free = _recommend(Problem(groups, target, levels, question, pretraining=False))
    return found._replace(free=free, pretrained=tuple(pretrained))


def _recommend(problem: Problem) -> Recommendation:
    question = problem.question
    candidates = problem.candidates([question.target])
    members = candidates.members
    nothing = Recommendation(question, left_out=candidates.left_out, unsettled=candidates.unsettled)
    if not members:
        return nothing._replace(has_totals=False)
    decision = decide(members, [question.tasks], [question.queries])
    cells: Array = decision.totals[:, 0, 0, 0]
    place = int(decision.winner[0, 0, 0])
    borders = _borders(problem, members, place)
    settled = bool(decision.settled[0, 0, 0]) and not candidates.unsettled
    if place < 0:
        return nothing._replace(borders=borders, settled=settled)
    order = [int(n) for n in np.argsort(cells, kind="stable") if np.isfinite(cells[n])]
    best = members[place]
    other = next((n for n in order if members[n].label != best.label), None)
    return nothing._replace(
        label=best.label,
        step=best.step,
        total=float(cells[place]),
        interval=total_interval(best, question.tasks, question.queries),
        share=float(decision.share[0, 0, 0]),
        solved=float(best.solved.mean()),
        settled=settled,
        runner_up=None if other is None else members[other].label,
        runner_up_total=None if other is None else float(cells[other]),
        runner_up_step=None if other is None else members[other].step,
        borders=borders,
    )


def _borders(problem: Problem, members: Sequence[Candidate], place: int) -> tuple[Border, ...]:
    """Return the nearest change of the winner `place` along tasks, queries and targets."""
    borders = [_target_border(problem, members, place)]
    if place >= 0:
        costs = [_cost_border(problem.question, members, place, n) for n in ("tasks", "queries")]
        borders = [*costs, *borders]
    return tuple(border for border in borders if border is not None)


def _cost_border(
    question: Question,
    members: Sequence[Candidate],
    place: int,
    what: Literal["tasks", "queries"],
) -> Border | None:
    """Return the nearest other winner, in factors, along a number of the question.

    `value` is the number nearest to the question at which it wins. The totals that cross are those
    of the checkpoints on both sides of the border."""
    asked = int(getattr(question, what))
    last = max(LARGEST[what], math.ceil(math.log10(max(asked, 1))) + 2)
    grid = np.rint(np.logspace(0, last, PLACES * last + 1))
    numbers = np.unique(np.concatenate([grid, [asked]]))
    if what == "tasks":
        winners = cheapest(members, numbers, [question.queries])[0, 0]
    else:
        winners = cheapest(members, [question.tasks], numbers)[:, 0, 0]
    names = np.asarray([one.label for one in members])
    others = np.flatnonzero(names[winners] != names[place])
    if not others.size:
        return None
    far = np.abs(np.log1p(numbers[others]) - np.log1p(asked))
    near = int(others[far.argmin()])
    is_above = bool(numbers[near] > asked)
    pair = members[int(winners[near - 1 if is_above else near + 1])], members[int(winners[near])]
    value = _crossing(*(_line(one, question, what) for one in pair))
    value = float(numbers[near]) if value is None else value
    if abs(value - round(value)) > ROUNDING * value:  # else the crossing is a whole number
        value = math.ceil(value) if is_above else math.floor(value)
    return Border(what, float(round(value)), pair[1].label)


def _target_border(problem: Problem, members: Sequence[Candidate], place: int) -> Border | None:
    question = problem.question
    at = target_grid(problem.groups, problem.target, problem.levels)
    candidates = problem.candidates(at)
    winners = cheapest(candidates.members, [question.tasks], [question.queries])[0, :, 0]
    mine = members[place].label if place >= 0 else None
    names = [candidates.members[int(n)].label if n >= 0 else None for n in winners]
    others = [(level, name) for level, name in zip(at, names) if name != mine]
    nearest = min(others, key=lambda other: abs(other[0] - question.target), default=None)
    return None if nearest is None else Border("target", *nearest)


def _line(candidate: Candidate, question: Question, what: str) -> tuple[float, float]:
    """Return the total as a line of the number of tasks or of queries: (start, slope)."""
    up, share = float(candidate.up_front.mean()), float(candidate.solved.mean())
    adapt, query = float(candidate.adapt.mean()), float(candidate.query.mean())
    if what == "tasks":
        return up, (adapt + question.queries * query) / share
    return up + question.tasks * adapt / share, question.tasks * query / share


def _crossing(one: tuple[float, float], other: tuple[float, float]) -> float | None:
    """Return where two lines (start, slope) are equal, or None if that is not positive."""
    if one[1] == other[1]:
        return None
    value = (one[0] - other[0]) / (other[1] - one[1])
    return value if value > 0 else None
