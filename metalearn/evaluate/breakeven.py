"""After how many new tasks an up-front cost is repaid: total cost is U + n c, c being the cost of
one solved task.

The interval is a bootstrap over training seeds and, inside, over tasks; one draw of tasks serves
every seed and every method, because all of them met the same frozen tasks (the pigeonhole
bootstrap, Owen 2007, Annals of Applied Statistics 1(2)). S seeds, E tasks, R resamples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate.targets import Bools, Reached, cost_per_solved

Array = NDArray[np.float64]
Verdict = Literal["pays", "always", "never", "not_reached", "undecided"]
LEAST_SOLVED, LARGEST_GAP = (
    0.5,
    0.1,
)  # below, or further apart, the prices are those of different accuracies
FACTOR = 10.0  # an interval wider than this decides nothing
RESAMPLES = 2000
LEAST_TASKS = 5  # that a resample of tasks means anything


class Account(NamedTuple):
    """One method's costs; None for what was not measured."""

    label: str
    seeds: tuple[int, ...]  # [S]
    up_front: Array | None  # [S]
    found: Reached | None  # solved and cost [S, E]


class BreakEven(NamedTuple):
    """Whether the dearer start `a` is repaid against `b`, and from which new task on."""

    a: str
    b: str
    verdict: Verdict
    tasks: int | None  # from this one on a is the cheaper; None: never, or not said
    ci95: tuple[float, float] | None  # of that number; infinite where a resample never crosses
    leave_one_out: tuple[tuple[int, float], ...]  # (seed left out, crossing)
    why: str


def break_evens(
    accounts: Sequence[Account],
    seed: int = 0,
    resamples: int = RESAMPLES,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> list[BreakEven]:
    """Every pair of methods, in the accounts' order, or these pairs of places.

    Where one was tested on fewer tasks than the other, on the tasks that both met: the first ones.
    """
    known: dict[tuple[int, int], Drawn] = {}

    def drawn(place: int, account: Account, tasks: int) -> Drawn:
        if (place, tasks) not in known:
            known[place, tasks] = _resampled(account, seed, place, resamples)
        return known[place, tasks]

    found = []
    for a, b in combinations(range(len(accounts)), 2) if pairs is None else pairs:
        pair = _on_common_tasks(accounts[a], accounts[b])
        tasks = 0 if pair[0].found is None else pair[0].found.cost.shape[1]
        found.append(
            _pair(
                *((account, drawn(place, account, tasks)) for place, account in zip((a, b), pair))
            )
        )
    return found


def at_common_levels(
    levels: Sequence[float],
    accounts_at: Callable[[float], Sequence[Account]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[tuple[float | None, BreakEven]]:
    """Every pair at the first of `levels` (the hardest comes first) that both reach often enough,
    and about as often.

    A target that only the best method reaches compares nobody else. The level is chosen by shares
    of tasks solved alone, never by cost; None, and the verdict `not_reached`, where no level will
    do. Pairs in the order of accounts."""
    first = accounts_at(levels[0])
    still = list(combinations(range(len(first)), 2))
    found: dict[tuple[int, int], tuple[float | None, BreakEven]] = {}
    for level in levels:
        accounts = accounts_at(level)
        ready = [
            pair
            for pair in still
            if not _apart(*_on_common_tasks(*(accounts[place] for place in pair)))
        ]
        still = [pair for pair in still if pair not in ready]
        found.update(
            zip(ready, ((level, one) for one in break_evens(accounts, seed, resamples, ready)))
        )
    found.update(
        zip(
            still,
            ((None, one) for one in break_evens(accounts_at(levels[-1]), seed, resamples, still)),
        )
    )
    return [found[pair] for pair in sorted(found)]


def crossing(up_a: float, each_a: float, up_b: float, each_b: float) -> float:
    """The number of tasks from which on a, with U_a + n c_a, is no dearer than b: at least 1,
    infinite if never.

    n = (U_a - U_b) / (c_b - c_a). Where a begins cheaper and is overtaken it is not said to pay:
    infinite too."""
    more, saved = up_a - up_b, each_b - each_a
    if more <= 0:
        return 1.0 if saved >= 0 else math.inf
    return max(1.0, more / saved) if saved > 0 else math.inf


Drawn = (
    tuple[Array, Array] | None
)  # up-front cost and cost per solved task of every resample, [R] each


def _pair(one: tuple[Account, Drawn], other: tuple[Account, Drawn]) -> BreakEven:
    reason = _unmeasured(one[0], other[0])
    if reason:
        return BreakEven(one[0].label, other[0].label, "undecided", None, None, (), reason)
    (a, drawn_a), (b, drawn_b) = sorted((one, other), key=lambda pair: _rank(pair[0]))
    apart, tasks_met = _apart(a, b), _reached(a).cost.shape[1]
    if apart:
        return BreakEven(a.label, b.label, "not_reached", None, None, (), apart)
    if tasks_met < LEAST_TASKS:
        why = f"{tasks_met} common tasks are too few for an interval: it takes {LEAST_TASKS}"
        return BreakEven(a.label, b.label, "undecided", None, None, (), why)
    tasks = _crossing_of(a, b)
    assert drawn_a is not None and drawn_b is not None
    spread = np.asarray([crossing(*each) for each in zip(*drawn_a, *drawn_b)])
    low, high = (
        float(value) for value in np.percentile(spread, (2.5, 97.5), method="inverted_cdf")
    )
    verdict, why = _verdict(a.label, b.label, tasks, low, high)
    whole = math.ceil(tasks - 1e-9) if math.isfinite(tasks) else None
    return BreakEven(a.label, b.label, verdict, whole, (low, high), _left_out(a, b), why)


def _apart(a: Account, b: Account) -> str:
    """Why the prices of two accounts are those of different accuracies; empty where
    they are not.
    """
    if _unmeasured(a, b):
        return ""
    solved = [float(_reached(account).solved.mean()) for account in (a, b)]
    if min(solved) >= LEAST_SOLVED and abs(solved[0] - solved[1]) <= LARGEST_GAP:
        return ""
    return (
        f"{a.label} solved {solved[0]:.0%} of its tasks and {b.label} {solved[1]:.0%}: no "
        f"common level"
    )


def _on_common_tasks(*accounts: Account) -> list[Account]:
    if any(account.found is None for account in accounts):
        return list(accounts)
    tasks = min(_reached(account).cost.shape[1] for account in accounts)
    return [
        account._replace(found=_part(_reached(account), np.s_[:, :tasks])) for account in accounts
    ]


def _part(found: Reached, index: Any) -> Reached:
    return Reached(found.solved[index], found.cost[index])


def _unmeasured(*accounts: Account) -> str:
    missing = [
        account.label for account in accounts if account.up_front is None or account.found is None
    ]
    return f"not measured: the cost of {' and '.join(missing)}" if missing else ""


def _rank(account: Account) -> tuple[float, float]:
    """The dearer start first: it is the one that has something to repay; of equal starts the
    cheaper task.
    """
    assert account.up_front is not None
    each = cost_per_solved(_reached(account))
    return -float(account.up_front.mean()), math.inf if each is None else each


def _reached(account: Account) -> Reached:
    assert account.found is not None
    return account.found


def _crossing_of(a: Account, b: Account) -> float:
    assert a.up_front is not None and b.up_front is not None
    each = [cost_per_solved(_reached(account)) for account in (a, b)]
    return crossing(
        float(a.up_front.mean()),
        math.inf if each[0] is None else each[0],
        float(b.up_front.mean()),
        math.inf if each[1] is None else each[1],
    )


def _verdict(a: str, b: str, tasks: float, low: float, high: float) -> tuple[Verdict, str]:
    if low != high and high > FACTOR * low:
        top = "never" if math.isinf(high) else f"{math.ceil(high):,}"
        ends = f"{math.ceil(low):,} to {top} tasks"
        return "undecided", f"the 95 % interval, {ends}, spans more than a factor of {FACTOR:g}"
    if math.isinf(tasks):
        return "never", f"{a} costs more beforehand than {b} and no less a solved task"
    if tasks <= 1:
        return "always", f"{a} is no dearer than {b} from the first new task on"
    return "pays", f"{a} costs more beforehand than {b} and less a solved task"


def _left_out(a: Account, b: Account) -> tuple[tuple[int, float], ...]:
    """The crossing without each seed, where a seed is left on both sides."""
    found = []
    for seed in sorted({*a.seeds, *b.seeds}):
        pair = [_without(account, seed) for account in (a, b)]
        if all(account.seeds for account in pair):
            found.append((seed, _crossing_of(pair[0], pair[1])))
    return tuple(found)


def _without(account: Account, seed: int) -> Account:
    kept = [place for place, own in enumerate(account.seeds) if own != seed]
    assert account.up_front is not None
    seeds = tuple(account.seeds[place] for place in kept)
    return Account(account.label, seeds, account.up_front[kept], _part(_reached(account), kept))


def _resampled(account: Account, seed: int, place: int, resamples: int) -> Drawn:
    """Every method draws its own seeds, and the same tasks as every other method with as many."""
    if account.up_front is None or account.found is None:
        return None
    seeds, tasks = account.found.cost.shape
    of_tasks = _counts((seed, 0, tasks), resamples, tasks)
    of_seeds = _counts((seed, 1, place), resamples, seeds)
    spent, solved = (
        _weighed(part, of_seeds, of_tasks) for part in (account.found.cost, account.found.solved)
    )
    each = np.divide(spent, solved, out=np.full_like(spent, np.inf), where=solved > 0)
    return of_seeds @ account.up_front / seeds, each


def _weighed(values: Array | Bools, of_seeds: Array, of_tasks: Array) -> Array:
    """The sum over drawn seeds and tasks: [S, E], [R, S], [R, E] -> [R]."""
    return np.asarray(((of_seeds @ values.astype(np.float64)) * of_tasks).sum(1))


@functools.lru_cache(maxsize=32)
def _counts(name: tuple[int, ...], resamples: int, size: int) -> Array:
    """How often each of `size` things is drawn in each resample, a function of the name: [R,
    size].
    """
    generator = np.random.default_rng(list(name))
    return generator.multinomial(size, np.full(size, 1 / size), resamples).astype(np.float64)
