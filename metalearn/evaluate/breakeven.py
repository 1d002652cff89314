"""Break-even: the number of new tasks after which an up-front cost is repaid.

Total cost is U + n c, c being the cost of one solved task.

A verdict holds for new training seeds and new tasks. Every condition in it is decided by a 95 %
interval, never by a point: a condition that the interval leaves open makes the verdict `undecided`.
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
LEAST_SOLVED = 0.5  # share of tasks that both methods must solve
LARGEST_GAP = 0.1  # between the shares: costs of different accuracies are not compared
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


class BreakEven(NamedTuple):
    """Whether the dearer start `a` is repaid against `b`, and from which new task on.

    Where the starts are not distinguished, `a` is the method with the cheaper task."""

    a: str
    b: str
    verdict: Verdict
    tasks: int | None  # from this one on a is the cheaper, by the point estimates
    ci95: tuple[float, float] | None  # of that number; infinite where a may never be repaid
    leave_one_out: tuple[tuple[int, float], ...]  # (seed left out, crossing)
    why: str
    seeds: tuple[int, int] = (0, 0)  # of a and of b
    crossing: float | None = None  # of the point estimates, infinite if never; None: not counted


class _Pair(NamedTuple):
    """Two methods on the same tasks, everything measured."""

    a: MethodCosts
    b: MethodCosts
    paired: bool  # seed by seed


def break_evens(
    methods: Sequence[MethodCosts], pairs: Sequence[tuple[int, int]] | None = None
) -> list[BreakEven]:
    """Every pair of methods, in their order, or the pairs at these places.

    Two methods are compared on the tasks that both met, which are the first ones. Seeds are paired
    where both start from the same trained network, and independent otherwise.

    Raises:
        ValueError: a cost is not finite."""
    chosen = combinations(range(len(methods)), 2) if pairs is None else pairs
    return [_break_even(methods[a], methods[b]) for a, b in chosen]


def at_common_levels(
    levels: Sequence[float], methods_at: Callable[[float], Sequence[MethodCosts]]
) -> list[tuple[float | None, BreakEven]]:
    """Every pair at the first of `levels` that both reach often and about equally often.

    The hardest level comes first.

    The level is chosen by shares of solved tasks alone, never by cost. Where no level will do it is
    None, and the result is that of the last one. Pairs come in the order of the methods."""
    tables = [methods_at(level) for level in levels]
    found = []
    for a, b in combinations(range(len(tables[0])), 2):
        fits = (place for place, table in enumerate(tables) if _comparable(table[a], table[b]))
        place = next(fits, None)
        table = tables[-1 if place is None else place]
        found.append((None if place is None else levels[place], _break_even(table[a], table[b])))
    return found


def crossing(up_a: float, each_a: float, up_b: float, each_b: float) -> float:
    """The number of tasks from which on a is no dearer than b: at least 1, infinite if never.

    The total of a is U_a + n c_a.

    n = (U_a - U_b) / (c_b - c_a). Where a begins cheaper and is overtaken, it does not pay:
    infinite too. Differences below 1e-9 of the costs are rounding, and count as 0."""
    more, saved = _without_rounding(up_a, up_b), _without_rounding(each_b, each_a)
    if more <= 0:
        return 1.0 if saved >= 0 else math.inf
    return max(1.0, more / saved) if saved > 0 else math.inf


def _without_rounding(a: float, b: float) -> float:
    if math.isinf(a) and math.isinf(b):
        return 0.0
    return a - b if math.inf in (a, b) or abs(a - b) > PRECISION * (abs(a) + abs(b)) else 0.0


def _break_even(one: MethodCosts, other: MethodCosts) -> BreakEven:
    pair = _aligned(one, other)
    if isinstance(pair, str):
        return BreakEven(one.label, other.label, "undecided", None, None, (), pair)
    pair = _oriented(pair)
    a, b, few = pair.a, pair.b, _too_few(pair)
    unsolved = _unsolved(pair) if few else ""
    gate: tuple[Verdict, str] = ("undecided", few + unsolved) if few else _gate(pair)
    verdict, why = gate
    seeds = (_seeds(a), _seeds(b))
    found = BreakEven(a.label, b.label, verdict, None, None, (), why, seeds)
    nobody = not all(_reached(method).solved.any() for method in (a, b))
    if verdict == "not_reached" or unsolved or nobody:
        return found
    tasks = _crossing(pair)
    whole = math.ceil(tasks - 1e-9) if math.isfinite(tasks) else None
    found = found._replace(tasks=whole, crossing=tasks, leave_one_out=_left_out(pair))
    if few:
        return found
    line = total_difference(*pair[:2], paired=pair.paired)
    low, high = (max(1.0, end) for end in root_interval(line))
    if not why:
        verdict, why = _verdict(pair, line, low, high)
    if verdict == "same":
        return found._replace(verdict=verdict, why=why, tasks=None)
    return found._replace(verdict=verdict, why=why, ci95=(low, high))


def _verdict(pair: _Pair, line: Line, low: float, high: float) -> tuple[Verdict, str]:
    """What the intervals of both costs and of the number of tasks say."""
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


def _unsolved(pair: _Pair) -> str:
    """Which of the two solved too few of these tasks to be counted; empty where neither."""
    shares = [(method.label, float(_reached(method).solved.mean())) for method in pair[:2]]
    return "".join(
        f"; {label} solved {share:.0%} of its tasks, fewer than {LEAST_SOLVED:.0%}"
        for label, share in shares
        if share < LEAST_SOLVED - PRECISION
    )


def _is_same(line: Line) -> bool:
    """Whether the intervals of both differences lie within SAME of the mean cost."""
    for place, size in zip((0.0, math.inf), line.size):
        _, low, high, rounding = line.at([place]).one()
        if max(-low, high) > SAME * size / 2 + rounding:
            return False
    return True


def _gate(pair: _Pair) -> tuple[Verdict, str]:
    """Whether the tasks that both solve are enough and alike, by intervals; ("undecided", "") if
    so, else a verdict and its reason."""
    doubts: list[str] = []
    for method in pair[:2]:
        share, low, high = share_interval(_reached(method).solved)
        text = f"{method.label} solved {_percent(share, low, high)} of its tasks"
        if high < LEAST_SOLVED - PRECISION:
            return "not_reached", f"{text}, fewer than {LEAST_SOLVED:.0%}"
        if low < LEAST_SOLVED - PRECISION:
            doubts.append(f"{text}, possibly fewer than {LEAST_SOLVED:.0%}")
    value, half = _gap(pair)
    more, fewer = (pair.a, pair.b) if value >= 0 else (pair.b, pair.a)
    size = _percent(abs(value), abs(value) - half, abs(value) + half)
    text = f"{more.label} solved {size} more of its tasks than {fewer.label}"
    if abs(value) - half > LARGEST_GAP + PRECISION:
        return "not_reached", f"{text}: no common level"
    if abs(value) + half > LARGEST_GAP + PRECISION:
        doubts.append(f"{text}, possibly above {LARGEST_GAP:.0%}")
    return "undecided", "; ".join(doubts)


def _gap(pair: _Pair) -> tuple[float, float]:
    """Difference of the shares solved, a - b, and its half width."""
    nothing = [np.zeros(len(method.seeds)) for method in pair[:2]]
    shares = [_reached(method).solved.astype(np.float64) for method in pair[:2]]
    line = difference(*map(Costs, nothing, shares), paired=pair.paired)
    value, _, high, _ = line.at([math.inf]).one()
    return value, high - value


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.0%} ({max(-1.0, low):.0%} to {min(1.0, high):.0%})"


def _comparable(one: MethodCosts, other: MethodCosts) -> bool:
    pair = _aligned(one, other)
    return isinstance(pair, str) or (not _too_few(pair) and _gate(pair) == ("undecided", ""))


def _too_few(pair: _Pair) -> str:
    """Why there are no verdicts from so few seeds or tasks; empty where there are enough."""
    tasks = _reached(pair.a).cost.shape[1]
    if tasks < LEAST_TASKS:
        return f"{tasks} common tasks are too few for an interval, which needs {LEAST_TASKS}"
    fewest = min(pair[:2], key=_seeds)
    if _seeds(fewest) < LEAST_SEEDS:
        count = _seeds(fewest)
        seeds = f"{count} seed{'s' * (count != 1)}"
        return f"{fewest.label} has {seeds}: a verdict needs at least {LEAST_SEEDS}"
    return ""


def _aligned(one: MethodCosts, other: MethodCosts) -> _Pair | str:
    """Both on the tasks that both met, and on common seeds where they are paired; a sentence where
    a cost was not measured."""
    both = (one, other)
    missing = [each.label for each in both if each.up_front is None or each.found is None]
    if missing:
        return f"not measured: the cost of {' and '.join(missing)}"
    for method in both:
        _check_finite(method)
    common = set(one.seeds) & set(other.seeds)
    paired = len(common) > 0 and _origin(one) == _origin(other)
    tasks = min(_reached(method).cost.shape[1] for method in both)
    a, b = (
        _part(method, [not paired or seed in common for seed in method.seeds], tasks)
        for method in both
    )
    return _Pair(a, b, paired)


def _oriented(pair: _Pair) -> _Pair:
    """The dearer start first, by its interval; of starts that are not distinguished the cheaper
    task."""
    up = [float(_up_front(method).mean()) for method in pair[:2]]
    each = [_each(method) for method in pair[:2]]
    apart = _without_rounding(*up) != 0
    if apart and min(map(_seeds, pair[:2])) >= 2 and all(map(math.isfinite, each)):
        apart = (
            total_difference(*pair[:2], paired=pair.paired).sign(0.0) != 0
            if _reached(pair.a).cost.shape[1] > 1
            else apart
        )
    swap = up[0] < up[1] if apart else _without_rounding(*each) > 0
    return _Pair(pair.b, pair.a, pair.paired) if swap else pair


def total_difference(a: MethodCosts, b: MethodCosts, *, paired: bool) -> Line:
    """The difference of total costs a - b."""
    costs = [costs_of_solved(_up_front(method), _reached(method)) for method in (a, b)]
    return difference(*costs, paired=paired)


def _crossing(pair: _Pair) -> float:
    costs = [(float(_up_front(method).mean()), _each(method)) for method in pair[:2]]
    return crossing(*costs[0], *costs[1])


def _left_out(pair: _Pair) -> tuple[tuple[int, float], ...]:
    """The crossing without each seed, where both have another."""
    found = []
    for seed in sorted({*pair.a.seeds, *pair.b.seeds}):
        a, b = (_part(method, [own != seed for own in method.seeds], None) for method in pair[:2])
        if a.seeds and b.seeds:
            found.append((seed, _crossing(_Pair(a, b, pair.paired))))
    return tuple(found)


def _part(method: MethodCosts, chosen: Sequence[bool], tasks: int | None) -> MethodCosts:
    """The method of some seeds and the first tasks."""
    places = np.flatnonzero(chosen)
    found = _reached(method)
    return method._replace(
        seeds=tuple(method.seeds[place] for place in places),
        up_front=_up_front(method)[places],
        found=Reached(found.solved[places, :tasks], found.cost[places, :tasks]),
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


def _each(method: MethodCosts) -> float:
    """Cost of one solved task; infinite where none was solved."""
    each = cost_per_solved(_reached(method))
    return math.inf if each is None else each


def _seeds(method: MethodCosts) -> int:
    return len(method.seeds)


def _origin(method: MethodCosts) -> str:
    return method.origin or method.label
