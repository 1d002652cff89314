"""Break-even: the number of new tasks after which a higher up-front cost is recovered.

Total cost is U + n c, where c is the cost per solved task.

A verdict holds for new training seeds and new tasks. Every condition in it is decided by a 95 %
interval, never by a point estimate: if an interval is not conclusive, the verdict is `undecided`.
With too few seeds for intervals there is no verdict; an estimate is subject to the same conditions,
decided by point estimates. Each verdict is false with a probability of at most 2.5 %.
Intervals of the number of tasks are Fieller's (fieller.py). S seeds, E tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.comparable import (
    MethodCosts,
    Pair,
    cost_per_task,
    decide_comparable,
    describe_incomparable,
    origin,
    reached,
    seed_count,
    up_front,
)
from metalearn.evaluate.random_effects import LEAST_SEEDS, LEVEL
from metalearn.evaluate.statistics.fieller import PRECISION, Line, difference, root_interval
from metalearn.evaluate.targets import Reached, costs_of_solved

Array = NDArray[np.float64]
Verdict = Literal["pays", "always", "never", "not_reached", "undecided", "same"]
FACTOR = 10.0  # an interval of the number of tasks wider than this decides nothing
SAME = 0.1  # costs that differ by less, relative to their mean, are the same
LEAST_TASKS = 5


class BreakEven(NamedTuple):
    """Whether `a`, with the higher up-front cost, breaks even against `b`, and after which task.

    If the up-front costs are not distinguished, `a` is the method with the lower cost per task."""

    a: str
    b: str
    verdict: Verdict
    tasks: int | None  # a is cheaper from this task on, by the point estimates
    ci95: tuple[float, float] | None  # of that number; infinite if a may never break even
    leave_one_out: tuple[tuple[int, float], ...]  # (seed left out, crossing)
    why: str
    seeds: tuple[int, int] = (0, 0)  # of a and of b
    crossing: float | None = None  # of the point estimates, infinite if never; None: not counted
    comparable: bool = True  # False: one solved too few tasks, or the fractions are too far apart


def break_evens(
    methods: Sequence[MethodCosts],
    pairs: Sequence[tuple[int, int]] | None = None,
    level: float = LEVEL,
) -> list[BreakEven]:
    """Compare every pair of methods, in their order, or the pairs with these indices.

    `level` is that of the intervals of costs which decide a verdict: higher if it is one of several
    verdicts on the same question. `ci95` and the intervals of fractions stay at 95 %.

    Two methods are compared on the tasks that both were tested on, which are the first ones. Seeds
    are paired if both start from the same trained network, and independent otherwise.

    Raises:
        ValueError: If a cost is not finite."""
    chosen = combinations(range(len(methods)), 2) if pairs is None else pairs
    return [_break_even(methods[a], methods[b], level) for a, b in chosen]


def at_common_levels(
    levels: Sequence[float], methods_at: Callable[[float], Sequence[MethodCosts]]
) -> list[tuple[float | None, BreakEven]]:
    """Compare every pair at the first of `levels` that both reach often and about equally often.

    The hardest level comes first.

    The level is chosen by the fractions of solved tasks, never by cost: by their intervals, or by
    point estimates if there are too few seeds or tasks for intervals. If no level fits, it is None,
    and the result is that of the last one. Pairs are in the order of the methods."""
    tables = [methods_at(level) for level in levels]
    results = []
    for a, b in combinations(range(len(tables[0])), 2):
        comparable = (
            level_index
            for level_index, table in enumerate(tables)
            if _comparable(table[a], table[b])
        )
        level_index = next(comparable, None)
        table = tables[-1 if level_index is None else level_index]
        results.append(
            (None if level_index is None else levels[level_index], _break_even(table[a], table[b]))
        )
    return results


def crossing(up_a: float, each_a: float, up_b: float, each_b: float) -> float:
    """Return the number of tasks from which a costs at most as much as b: >= 1, infinite if never.

    The total of a is U_a + n c_a.

    n = (U_a - U_b) / (c_b - c_a). If a starts cheaper and becomes more expensive, it
    is infinite as well. Differences below 1e-9 of the costs are rounding, and count as 0."""
    more, saved = _without_rounding(up_a, up_b), _without_rounding(each_b, each_a)
    if more <= 0:
        return 1.0 if saved >= 0 else math.inf
    return max(1.0, more / saved) if saved > 0 else math.inf


def _without_rounding(a: float, b: float) -> float:
    if math.isinf(a) and math.isinf(b):
        return 0.0
    return a - b if math.inf in (a, b) or abs(a - b) > PRECISION * (abs(a) + abs(b)) else 0.0


def _break_even(first: MethodCosts, second: MethodCosts, level: float = LEVEL) -> BreakEven:
    pair = _align(first, second)
    if isinstance(pair, str):
        return BreakEven(first.label, second.label, "undecided", None, None, (), pair)
    pair = _orient(pair, level)
    a, b, too_few = pair.a, pair.b, _too_few(pair)
    apart = describe_incomparable(pair) if too_few else ""
    verdict: Verdict = "undecided"
    verdict, why = (verdict, too_few + apart) if too_few else decide_comparable(pair)
    seeds = (seed_count(a), seed_count(b))
    comparable = verdict != "not_reached" and not apart
    result = BreakEven(a.label, b.label, verdict, None, None, (), why, seeds, None, comparable)
    if not comparable or not all(reached(method).solved.any() for method in (a, b)):
        return result
    tasks = _crossing(pair)
    task_count = math.ceil(tasks - 1e-9) if math.isfinite(tasks) else None
    result = result._replace(tasks=task_count, crossing=tasks, leave_one_out=_leave_one_out(pair))
    if too_few:
        return result
    line = total_difference(*pair[:2], paired=pair.paired)
    low, high = (max(1.0, end) for end in root_interval(line))
    if not why:
        verdict, why = _verdict(pair, line, low, high, level)
    if verdict == "same":
        return result._replace(verdict=verdict, why=why, tasks=None)
    return result._replace(verdict=verdict, why=why, ci95=(low, high))


def _verdict(
    pair: Pair, line: Line, low: float, high: float, level: float = LEVEL
) -> tuple[Verdict, str]:
    """Return the verdict, and its reason, from the intervals of both costs and of the tasks."""
    a, b = pair.a.label, pair.b.label
    start, single = line.sign(0.0, level), level
    # Where the lower cost per task chooses which of the two comes first, either may so be found to
    # cost less, with half of the error each.
    level = single if start else 1 - (1 - single) / 2
    if _is_same(line, single):
        return "same", f"{a} and {b} cost the same, within {SAME:.0%}, up front and per solved task"
    if line.sign(math.inf, level) < 0:
        _, _, upper, rounding = line.at([1.0], level).one()
        if upper <= rounding:
            return "always", f"{a} costs no more than {b} from the first new task on"
        if not start:
            why = f"{a} costs less per solved task than {b}; which costs more up front is undecided"
            return "undecided", f"{why}: {_describe_difference(pair, line, 0.0, single)}"
        if high <= FACTOR * low:
            return "pays", f"{a} costs more up front than {b} and less per solved task"
        ends = f"{math.ceil(low):,} to {math.ceil(high):,} tasks"
        return "undecided", f"the 95 % interval, {ends}, spans more than a factor of {FACTOR:g}"
    _, lower, _, rounding = line.at([math.inf], single).one()
    if start > 0 and lower >= -rounding:
        return "never", f"{a} costs more up front than {b} and no less per solved task"
    why = _describe_difference(pair, line, math.inf, level)
    return "undecided", f"which of the two is cheaper per solved task is undecided: {why}"


def _describe_difference(pair: Pair, line: Line, tasks: float, level: float) -> str:
    """Return the difference after so many tasks with its interval; an infinite number: per task."""
    value, low, high, _ = line.at([tasks], level).one()
    interval = f"{100 * level:g} % interval {low:.3g} to {high:.3g}"
    return f"the difference {pair.a.label} - {pair.b.label} is {value:.3g} ({interval})"


def _is_same(line: Line, level: float = LEVEL) -> bool:
    """Return whether the intervals of both differences are within SAME of the mean cost."""
    for tasks, size in zip((0.0, math.inf), line.size):
        _, low, high, rounding = line.at([tasks], level).one()
        if max(-low, high) > SAME * size / 2 + rounding:
            return False
    return True


def _comparable(first: MethodCosts, second: MethodCosts) -> bool:
    """Return whether both solve enough tasks and about equally many, by intervals; by point
    estimates if there are too few seeds or tasks for intervals."""
    pair = _align(first, second)
    if isinstance(pair, str):
        return True
    return (
        not describe_incomparable(pair)
        if _too_few(pair)
        else decide_comparable(pair) == ("undecided", "")
    )


def _too_few(pair: Pair) -> str:
    """Return why there are too few seeds or tasks for a verdict; empty if there are enough."""
    tasks = reached(pair.a).cost.shape[1]
    if tasks < LEAST_TASKS:
        return f"{tasks} common tasks are too few for an interval, which needs {LEAST_TASKS}"
    fewest = min(pair[:2], key=seed_count)
    if seed_count(fewest) < LEAST_SEEDS:
        count = seed_count(fewest)
        seeds = f"{count} seed{'s' * (count != 1)}"
        return f"{fewest.label} has {seeds}: a verdict needs at least {LEAST_SEEDS}"
    return ""


def _align(first: MethodCosts, second: MethodCosts) -> Pair | str:
    """Return both on their common tasks, and on common seeds if they are paired; the reason if a
    cost was not measured."""
    both = (first, second)
    missing = [costs.label for costs in both if costs.up_front is None or costs.found is None]
    if missing:
        return f"not measured: the cost of {' and '.join(missing)}"
    for method in both:
        _check_finite(method)
    common = set(first.seeds) & set(second.seeds)
    paired = len(common) > 0 and origin(first) == origin(second)
    counts = [reached(method).cost.shape[1] for method in both]
    tasks = min(counts)
    a, b = (
        _subset(method, [not paired or seed in common for seed in method.seeds], tasks)
        for method in both
    )
    shortened = tuple(method.label for method, count in zip(both, counts) if count > tasks)
    return Pair(a, b, paired, shortened)


def _orient(pair: Pair, level: float) -> Pair:
    """Put the higher up-front cost first, by its interval; if these are not distinguished, the
    lower cost per task."""
    up = [float(up_front(method).mean()) for method in pair[:2]]
    task_costs = [cost_per_task(method) for method in pair[:2]]
    distinguished = _without_rounding(*up) != 0
    if (
        distinguished
        and min(map(seed_count, pair[:2])) >= 2
        and all(map(math.isfinite, task_costs))
    ):
        distinguished = (
            total_difference(*pair[:2], paired=pair.paired).sign(0.0, level) != 0
            if reached(pair.a).cost.shape[1] > 1
            else distinguished
        )
    swap = up[0] < up[1] if distinguished else _without_rounding(*task_costs) > 0
    return pair._replace(a=pair.b, b=pair.a) if swap else pair


def total_difference(a: MethodCosts, b: MethodCosts, *, paired: bool) -> Line:
    """Return the difference of total costs a - b."""
    first, second = (
        costs_of_solved(up_front(method), reached(method)).timed(method.timing) for method in (a, b)
    )
    return difference(first, second, paired=paired)


def _crossing(pair: Pair) -> float:
    costs = [(float(up_front(method).mean()), cost_per_task(method)) for method in pair[:2]]
    return crossing(*costs[0], *costs[1])


def _leave_one_out(pair: Pair) -> tuple[tuple[int, float], ...]:
    """Return the crossing without each seed, if both have another."""
    crossings = []
    for seed in sorted({*pair.a.seeds, *pair.b.seeds}):
        a, b = (
            _subset(method, [other != seed for other in method.seeds], None) for method in pair[:2]
        )
        if a.seeds and b.seeds:
            crossings.append((seed, _crossing(Pair(a, b, pair.paired))))
    return tuple(crossings)


def _subset(method: MethodCosts, mask: Sequence[bool], tasks: int | None) -> MethodCosts:
    """Return the method's costs for some seeds and the first tasks."""
    indices = np.flatnonzero(mask)
    found = reached(method)
    return method._replace(
        seeds=tuple(method.seeds[index] for index in indices),
        up_front=up_front(method)[indices],
        found=Reached(found.solved[indices, :tasks], found.cost[indices, :tasks]),
    )


def _check_finite(method: MethodCosts) -> None:
    for name, values in (
        ("the up-front cost", up_front(method)),
        ("the cost of a task", reached(method).cost),
    ):
        if values.size == 0 or not np.isfinite(values).all():
            raise ValueError(
                f"{name} of {method.label} must be finite numbers, one for each seed; "
                f"got {values.ravel()[:5].tolist()}: use None for a cost that was not measured"
            )
