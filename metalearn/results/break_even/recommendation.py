"""The cheapest way for so many new tasks: one cell of the decision map, and what would change it.

The same totals and the same bootstrap as `decision_map`, so that both agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.evaluate.cost_block import Axis
from metalearn.evaluate.decision.totals import Choice, decide, total_interval
from metalearn.results.break_even.decision_map import choices_of, grid_of
from metalearn.results.records import Array, Group, Json

PLACES = 281  # numbers of tasks from 1 to 1e7 among which a border is looked for
LARGEST = 7.0  # log10 of the most tasks


class Question(NamedTuple):
    """What is to be learned."""

    tasks: int
    queries: int
    target: float
    axis: Axis


class Border(NamedTuple):
    """Where another method becomes the cheapest one, the rest of the question unchanged."""

    what: str  # tasks | target
    value: float
    label: str | None  # None: no method reaches that target


class Recommendation(NamedTuple):
    """The cheapest method of a question; None where no method reaches the target."""

    question: Question
    left_out: dict[str, str]  # label -> why it is no choice
    unsettled: str  # why rows of these seeds settle nothing; empty where they may
    label: str | None = None
    total: float | None = None
    interval: tuple[float, float] | None = None  # 95 %; None with one seed
    share: float | None = None  # of draws in which it alone is the cheapest
    solved: float | None = None  # share of the test tasks that it solves
    runner_up: str | None = None
    runner_up_total: float | None = None
    runner_up_step: int | None = None  # as `step`
    border: Border | None = None
    settled: bool = False  # whether the data settle that it is the cheapest
    step: int | None = None  # after which its meta-training stops; None: all of it


def recommend(
    groups: Sequence[Group], target: Json, levels: Sequence[float], asked: Question
) -> Recommendation:
    """The cheapest method; `target` and `levels` are those of the comparison."""
    metric = str(target["metric"])
    made = choices_of(groups, metric, [asked.target], asked.axis)
    nothing = Recommendation(asked, left_out=made.left_out, unsettled=made.unsettled)
    if not made.found:
        return nothing
    found = decide(made.found, [asked.tasks], [asked.queries])
    cells: Array = found.totals[:, 0, 0, 0]
    place = int(found.winner[0, 0, 0])
    border = _border(groups, target, levels, asked, made.found, place)
    if place < 0:
        return nothing._replace(border=border)
    order = [int(n) for n in np.argsort(cells, kind="stable") if np.isfinite(cells[n])]
    best = made.found[place]
    other = next((n for n in order if made.found[n].label != best.label), None)
    return nothing._replace(
        label=best.label,
        step=best.step,
        total=float(cells[place]),
        interval=total_interval(best, asked.tasks, asked.queries),
        share=float(found.share[0, 0, 0]),
        solved=float(best.solved.mean()),
        settled=bool(found.settled[0, 0, 0]) and not made.unsettled,
        runner_up=None if other is None else made.found[other].label,
        runner_up_total=None if other is None else float(cells[other]),
        runner_up_step=None if other is None else made.found[other].step,
        border=border,
    )


def _border(
    groups: Sequence[Group],
    target: Json,
    levels: Sequence[float],
    asked: Question,
    choices: Sequence[Choice],
    place: int,
) -> Border | None:
    """The nearest change of the winner along tasks, in factors; else along targets of the map.

    The totals that cross are those of the checkpoints on both sides of the border."""
    if place >= 0:
        numbers = np.unique(np.concatenate([np.logspace(0, LARGEST, PLACES), [asked.tasks]]))
        winners = decide(choices, numbers, [asked.queries], draws=1).winner[0, 0]
        names = np.asarray([choice.label for choice in choices])
        others = np.flatnonzero(names[winners] != names[place])
        if others.size:
            far = np.abs(np.log(numbers[others]) - np.log(asked.tasks))
            near = int(others[far.argmin()])
            inner = int(winners[near - 1 if numbers[near] > asked.tasks else near + 1])
            value = _crossing(choices, inner, int(winners[near]), asked.queries)
            label = choices[int(winners[near])].label
            return Border("tasks", value or float(numbers[near]), label)
    return _target_border(groups, target, levels, asked, choices, place)


def _target_border(
    groups: Sequence[Group],
    target: Json,
    levels: Sequence[float],
    asked: Question,
    choices: Sequence[Choice],
    place: int,
) -> Border | None:
    at = grid_of(groups, target, levels)
    made = choices_of(groups, str(target["metric"]), at, asked.axis)
    winners = decide(made.found, [asked.tasks], [asked.queries], draws=1).winner[0, :, 0]
    mine = choices[place].label if place >= 0 else None
    names = [made.found[int(n)].label if n >= 0 else None for n in winners]
    others = [(abs(level - asked.target), level, name) for level, name in zip(at, names)]
    changed = [(level, name) for _, level, name in sorted(others) if name != mine]
    return Border("target", *changed[0]) if changed else None


def _crossing(choices: Sequence[Choice], one: int, other: int, queries: float) -> float | None:
    """The number of tasks at which two totals are equal; None where that is not positive."""
    pair = [choices[one], choices[other]]
    up = [float(choice.up_front.mean()) for choice in pair]
    each = [
        float((choice.adapt + queries * choice.query).mean()) / float(choice.solved.mean())
        for choice in pair
    ]
    if each[0] == each[1]:
        return None
    value = (up[0] - up[1]) / (each[1] - each[0])
    return value if value > 0 else None
