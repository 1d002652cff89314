"""Break-even: the number of new tasks after which a higher up-front cost is recovered.

Total cost is U + n c, where c is the cost per solved task.

A verdict holds for new training seeds and new tasks. Every condition in it is decided by a 95 %
interval, never by a point estimate: if an interval is not conclusive, the verdict is `undecided`.
With too few seeds for intervals there is no verdict; an estimate is subject to the same conditions,
decided by point estimates.
Intervals of the number of tasks are Fieller's (fieller.py). S seeds, E tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.fieller import PRECISION, Costs, Line, difference, root_interval
from metalearn.evaluate.random_effects import LEAST_SEEDS
from metalearn.evaluate.targets import Reached, cost_per_solved, costs_of_solved, share_interval

Array = NDArray[np.float64]
Verdict = Literal["pays", "always", "never", "not_reached", "undecided", "same"]
LEAST_SOLVED = 0.5  # fraction of tasks that both methods must solve
LARGEST_GAP = 0.1  # between the fractions: costs of different accuracies are not compared
FACTOR = 10.0  # an interval of the number of tasks wider than this decides nothing
SAME = 0.1  # costs that differ by less, relative to their mean, are the same
LEAST_TASKS = 5


class MethodCosts(NamedTuple):
    """Costs of one method; None for a cost that was not measured."""

    label: str
    seeds: tuple[int, ...]  # [S]
    up_front: Array | None  # [S]
    found: Reached | None  # solved and cost [S, E]
    origin: str = ""  # the trained network that it starts from; its own label if it has none
    # of seconds: (relative variance of the cost per task by timing, degrees of freedom)
    timing: tuple[tuple[float, float], ...] = ()


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


class _Pair(NamedTuple):
    """Two methods on the same tasks, everything measured."""

    a: MethodCosts
    b: MethodCosts
    paired: bool  # seed by seed
    shortened: tuple[str, ...] = ()  # labels that were tested on more tasks than these


def break_evens(
    methods: Sequence[MethodCosts], pairs: Sequence[tuple[int, int]] | None = None
) -> list[BreakEven]:
    """Compare every pair of methods, in their order, or the pairs with these indices.

    Two methods are compared on the tasks that both were tested on, which are the first ones. Seeds
    are paired if both start from the same trained network, and independent otherwise.

    Raises:
        ValueError: If a cost is not finite."""
    chosen = combinations(range(len(methods)), 2) if pairs is None else pairs
    return [_break_even(methods[a], methods[b]) for a, b in chosen]


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


def _break_even(first: MethodCosts, second: MethodCosts) -> BreakEven:
    pair = _align(first, second)
    if isinstance(pair, str):
        return BreakEven(first.label, second.label, "undecided", None, None, (), pair)
    pair = _orient(pair)
    a, b, too_few = pair.a, pair.b, _too_few(pair)
    apart = _describe_incomparable(pair) if too_few else ""
    gate: tuple[Verdict, str] = ("undecided", too_few + apart) if too_few else _gate(pair)
    verdict, why = gate
    seeds = (_seed_count(a), _seed_count(b))
    comparable = verdict != "not_reached" and not apart
    result = BreakEven(a.label, b.label, verdict, None, None, (), why, seeds, None, comparable)
    if not comparable or not all(_reached(method).solved.any() for method in (a, b)):
        return result
    tasks = _crossing(pair)
    task_count = math.ceil(tasks - 1e-9) if math.isfinite(tasks) else None
    result = result._replace(tasks=task_count, crossing=tasks, leave_one_out=_leave_one_out(pair))
    if too_few:
        return result
    line = total_difference(*pair[:2], paired=pair.paired)
    low, high = (max(1.0, end) for end in root_interval(line))
    if not why:
        verdict, why = _verdict(pair, line, low, high)
    if verdict == "same":
        return result._replace(verdict=verdict, why=why, tasks=None)
    return result._replace(verdict=verdict, why=why, ci95=(low, high))


def _verdict(pair: _Pair, line: Line, low: float, high: float) -> tuple[Verdict, str]:
    """Return the verdict, and its reason, from the intervals of both costs and of the tasks."""
    a, b = pair.a.label, pair.b.label
    start, slope = line.sign(0.0), line.sign(math.inf)
    if slope < 0:
        _, _, upper, rounding = line.at([1.0]).one()
        if upper <= rounding:
            return "always", f"{a} costs no more than {b} from the first new task on"
        if high <= FACTOR * low:
            return "pays", f"{a} costs more up front than {b} and less per solved task"
        ends = f"{math.ceil(low):,} to {math.ceil(high):,} tasks"
        return "undecided", f"the 95 % interval, {ends}, spans more than a factor of {FACTOR:g}"
    value, lower, upper, rounding = line.at([math.inf]).one()
    if start > 0 and lower >= -rounding:
        return "never", f"{a} costs more up front than {b} and no less per solved task"
    if _is_same(line):
        return "same", f"{a} and {b} cost the same, within {SAME:.0%}, up front and per solved task"
    return "undecided", (
        f"which of the two is cheaper per solved task is undecided: the difference {a} - {b} is "
        f"{value:.3g} (95 % interval {lower:.3g} to {upper:.3g})"
    )


def _describe_incomparable(pair: _Pair) -> str:
    """Return why these point estimates allow no count, after "; "; empty if they do.

    Names the methods that solved too few of these tasks; if there are none, a gap between the
    fractions that is too large."""
    solved = [float(_reached(method).solved.mean()) for method in pair[:2]]
    unsolved = "".join(
        f"; {method.label} solved {fraction:.0%} of {_name_tasks(pair, method)}, "
        f"fewer than {LEAST_SOLVED:.0%}"
        for method, fraction in zip(pair[:2], solved)
        if fraction < LEAST_SOLVED - PRECISION
    )
    gap = solved[0] - solved[1]
    if unsolved or abs(gap) <= LARGEST_GAP + PRECISION:
        return unsolved
    return f"; {_describe_gap(pair, gap, _points(gap))}: no common level"


def _is_same(line: Line) -> bool:
    """Return whether the intervals of both differences are within SAME of the mean cost."""
    for tasks, size in zip((0.0, math.inf), line.size):
        _, low, high, rounding = line.at([tasks]).one()
        if max(-low, high) > SAME * size / 2 + rounding:
            return False
    return True


def _gate(pair: _Pair) -> tuple[Verdict, str]:
    """Return ("undecided", "") if both solve enough tasks and about equally many, by intervals;
    else a verdict and its reason."""
    doubts: list[str] = []
    for method in pair[:2]:
        fraction, low, high = share_interval(_reached(method).solved)
        size = _percent(fraction, low, high)
        text = f"{method.label} solved {size} of {_name_tasks(pair, method)}"
        if high < LEAST_SOLVED - PRECISION:
            return "not_reached", f"{text}, fewer than {LEAST_SOLVED:.0%}"
        if low < LEAST_SOLVED - PRECISION:
            doubts.append(f"{text}, possibly fewer than {LEAST_SOLVED:.0%}")
    value, half = _gap(pair)
    ends = [max(-1.0, abs(value) - half), min(1.0, abs(value) + half)]
    low_end, high_end = (f"{100 * end:.0f}" for end in ends)
    text = _describe_gap(pair, value, f"{_points(value)} ({low_end} to {high_end})")
    if abs(value) - half > LARGEST_GAP + PRECISION:
        return "not_reached", f"{text}: no common level"
    if abs(value) + half > LARGEST_GAP + PRECISION:
        doubts.append(f"{text}, possibly above {_points(LARGEST_GAP)}")
    return "undecided", "; ".join(doubts)


def _gap(pair: _Pair) -> tuple[float, float]:
    """Return the difference of the fractions solved, a - b, and its half width."""
    no_cost = [np.zeros(len(method.seeds)) for method in pair[:2]]
    fractions = [_reached(method).solved.astype(np.float64) for method in pair[:2]]
    line = difference(*map(Costs, no_cost, fractions), paired=pair.paired)
    value, _, high, _ = line.at([math.inf]).one()
    return value, high - value


def _describe_gap(pair: _Pair, value: float, size: str) -> str:
    """Return which of the two solved the larger fraction; `value` is a - b, `size` how much."""
    more, fewer = (pair.a, pair.b) if value >= 0 else (pair.b, pair.a)
    tasks = f"{_name_tasks(pair, more, fewer)}," if pair.shortened else "tasks"
    return f"{more.label} solved a larger fraction of {tasks} than {fewer.label}, by {size}"


def _name_tasks(pair: _Pair, *methods: MethodCosts) -> str:
    """Return "its tasks", or the first ones if a method was tested on more than the pair."""
    if not any(method.label in pair.shortened for method in methods):
        return "its tasks"
    count = _reached(pair.a).cost.shape[1]
    first = f"the first {count} tasks" if count != 1 else "the first task"
    return f"{first}, which both were tested on"


def _points(difference: float) -> str:
    """Format the size of a difference of fractions."""
    text = f"{100 * abs(difference):.0f}"
    return f"{text} point{'s' * (text != '1')}"


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.0%} ({max(-1.0, low):.0%} to {min(1.0, high):.0%})"


def _comparable(first: MethodCosts, second: MethodCosts) -> bool:
    """Return whether both solve enough tasks and about equally many, by intervals; by point
    estimates if there are too few seeds or tasks for intervals."""
    pair = _align(first, second)
    if isinstance(pair, str):
        return True
    return not _describe_incomparable(pair) if _too_few(pair) else _gate(pair) == ("undecided", "")


def _too_few(pair: _Pair) -> str:
    """Return why there are too few seeds or tasks for a verdict; empty if there are enough."""
    tasks = _reached(pair.a).cost.shape[1]
    if tasks < LEAST_TASKS:
        return f"{tasks} common tasks are too few for an interval, which needs {LEAST_TASKS}"
    fewest = min(pair[:2], key=_seed_count)
    if _seed_count(fewest) < LEAST_SEEDS:
        count = _seed_count(fewest)
        seeds = f"{count} seed{'s' * (count != 1)}"
        return f"{fewest.label} has {seeds}: a verdict needs at least {LEAST_SEEDS}"
    return ""


def _align(first: MethodCosts, second: MethodCosts) -> _Pair | str:
    """Return both on their common tasks, and on common seeds if they are paired; the reason if a
    cost was not measured."""
    both = (first, second)
    missing = [costs.label for costs in both if costs.up_front is None or costs.found is None]
    if missing:
        return f"not measured: the cost of {' and '.join(missing)}"
    for method in both:
        _check_finite(method)
    common = set(first.seeds) & set(second.seeds)
    paired = len(common) > 0 and _origin(first) == _origin(second)
    counts = [_reached(method).cost.shape[1] for method in both]
    tasks = min(counts)
    a, b = (
        _subset(method, [not paired or seed in common for seed in method.seeds], tasks)
        for method in both
    )
    shortened = tuple(method.label for method, count in zip(both, counts) if count > tasks)
    return _Pair(a, b, paired, shortened)


def _orient(pair: _Pair) -> _Pair:
    """Put the higher up-front cost first, by its interval; if these are not distinguished, the
    lower cost per task."""
    up = [float(_up_front(method).mean()) for method in pair[:2]]
    task_costs = [_cost_per_task(method) for method in pair[:2]]
    distinguished = _without_rounding(*up) != 0
    if (
        distinguished
        and min(map(_seed_count, pair[:2])) >= 2
        and all(map(math.isfinite, task_costs))
    ):
        distinguished = (
            total_difference(*pair[:2], paired=pair.paired).sign(0.0) != 0
            if _reached(pair.a).cost.shape[1] > 1
            else distinguished
        )
    swap = up[0] < up[1] if distinguished else _without_rounding(*task_costs) > 0
    return pair._replace(a=pair.b, b=pair.a) if swap else pair


def total_difference(a: MethodCosts, b: MethodCosts, *, paired: bool) -> Line:
    """Return the difference of total costs a - b."""
    first, second = (
        costs_of_solved(_up_front(method), _reached(method)).timed(method.timing)
        for method in (a, b)
    )
    return difference(first, second, paired=paired)


def _crossing(pair: _Pair) -> float:
    costs = [(float(_up_front(method).mean()), _cost_per_task(method)) for method in pair[:2]]
    return crossing(*costs[0], *costs[1])


def _leave_one_out(pair: _Pair) -> tuple[tuple[int, float], ...]:
    """Return the crossing without each seed, if both have another."""
    crossings = []
    for seed in sorted({*pair.a.seeds, *pair.b.seeds}):
        a, b = (
            _subset(method, [other != seed for other in method.seeds], None) for method in pair[:2]
        )
        if a.seeds and b.seeds:
            crossings.append((seed, _crossing(_Pair(a, b, pair.paired))))
    return tuple(crossings)


def _subset(method: MethodCosts, mask: Sequence[bool], tasks: int | None) -> MethodCosts:
    """Return the method's costs for some seeds and the first tasks."""
    indices = np.flatnonzero(mask)
    reached = _reached(method)
    return method._replace(
        seeds=tuple(method.seeds[index] for index in indices),
        up_front=_up_front(method)[indices],
        found=Reached(reached.solved[indices, :tasks], reached.cost[indices, :tasks]),
    )


def _check_finite(method: MethodCosts) -> None:
    for name, values in (
        ("the up-front cost", _up_front(method)),
        ("the cost of a task", _reached(method).cost),
    ):
        if values.size == 0 or not np.isfinite(values).all():
            raise ValueError(
                f"{name} of {method.label} must be finite numbers, one for each seed; "
                f"got {values.ravel()[:5].tolist()}: use None for a cost that was not measured"
            )


def _up_front(method: MethodCosts) -> Array:
    assert method.up_front is not None
    return method.up_front


def _reached(method: MethodCosts) -> Reached:
    assert method.found is not None
    return method.found


def _cost_per_task(method: MethodCosts) -> float:
    """Return the cost per solved task; infinite if none was solved."""
    cost = cost_per_solved(_reached(method))
    return math.inf if cost is None else cost


def _seed_count(method: MethodCosts) -> int:
    return len(method.seeds)


def _origin(method: MethodCosts) -> str:
    return method.origin or method.label
