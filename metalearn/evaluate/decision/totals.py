"""Total cost of n new tasks with q queries each, and the cheapest method that reaches a target.

    total = U + n (adapt + q query) / fraction

U is the cost before the first task, `adapt` that of adapting to a task, `query` that of predicting
a query; division by the fraction of tasks solved gives the cost of n solved tasks. A method with a
fraction below LEAST_SOLVED does not reach the target. Letters: S seeds, E tasks, A targets, Q
numbers of queries, N numbers of tasks, R bootstrap samples, L methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.comparable import LEAST_SOLVED
from metalearn.evaluate.statistics.fieller import Costs, difference
from metalearn.evaluate.targets import Reached, costs_of_solved, share_interval

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROUNDING = 1e-9
DRAWS = 200
CLEAR = 0.95  # fraction of samples that the cheapest must win for the data to be conclusive


class Candidate(NamedTuple):
    """Costs and solved tasks of a method; candidates with the same label are its checkpoints."""

    label: str
    up_front: Array  # [S]
    adapt: Array  # [S], per task
    query: Array  # [S], per query
    solved: Bools  # [A, S, E]
    origin: str = ""  # the trained network that it starts from: its seeds are resampled together
    step: int | None = None  # after which its meta-training stops; None: all of it
    # of seconds: (covariance [2, 2] of the means of adapt and query by timing, degrees of freedom)
    timing: tuple[tuple[Array, float], ...] = ()
    seeds: tuple[int, ...] = ()  # [S], the numbers of its seeds; empty: 0 to S - 1


class Decision(NamedTuple):
    """The cheapest method of each cell: -1 if no method reaches the target."""

    winner: NDArray[np.int64]  # [Q, A, N], indices into the list of choices
    share: Array  # [Q, A, N], fraction of samples in which it alone wins; NaN without a winner
    settled: Bools  # [Q, A, N]
    totals: Array  # [L, Q, A, N], infinite if the target is not reached


def totals(
    choices: Sequence[Candidate], tasks: ArrayLike, queries: ArrayLike, at: Sequence[Array] | None
) -> Array:
    """Return total costs from every method's means: [L, (R,) Q, A, N]; infinite below LEAST_SOLVED.

    `at` contains weights [R, S * E] of each method's seeds and tasks; None: all the same."""
    costs = []
    for index, choice in enumerate(choices):
        count, seeds, width = choice.solved.shape
        if at is None:
            weights = np.full((1, seeds * width), 1.0 / (seeds * width))
        else:
            weights = at[index]
        fraction = weights @ choice.solved.reshape(count, -1).T  # [R, A]
        seed_weights = weights.reshape(-1, seeds, width).sum(-1)  # [R, S]
        up, adapt, query = (seed_weights @ part for part in choice[1:4])  # [R]
        per_task = adapt[:, None] + np.asarray(queries, np.float64) * query[:, None]  # [R, Q]
        costs.append(_total(up, per_task, fraction, np.asarray(tasks, np.float64)))
    table = np.stack(costs)
    return table[:, 0] if at is None else table


def _total(up: Array, per_task: Array, fraction: Array, tasks: Array) -> Array:
    """Return total costs: [R], [R, Q], [R, A], [N] -> [R, Q, A, N]."""
    reached = fraction >= LEAST_SOLVED - ROUNDING
    per_solved = np.where(reached, 1 / np.where(reached, fraction, 1.0), np.inf)
    cost = _times(per_task[:, :, None], per_solved[:, None])  # [R, Q, A]
    return np.asarray(up[:, None, None, None] + cost[..., None] * tasks)


def _times(a: Array, b: Array) -> Array:
    """Return the product; infinite if a cost is 0 and the target is not reached."""
    with np.errstate(invalid="ignore"):
        product = a * b
    return np.where(np.isnan(product), np.inf, product)


def decide(
    choices: Sequence[Candidate],
    tasks: ArrayLike,
    queries: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Decision:
    """Return the cheapest method for every number of queries and tasks and every target.

    A method costs as much as its cheapest checkpoint. That is somewhat too low if there are
    several, as the scores that give their cost also select among them; no interval corrects for
    it. `share` is from a bootstrap over seeds and tasks: all methods have the same resampled tasks,
    methods of one origin the same seeds. The first of equally cheap methods wins, but not in a
    bootstrap sample.

    `settled`: `share` is at least CLEAR; the winner reaches the target by the 95 % interval of its
    fraction of solved tasks; and its total is below that of every other method that may reach it,
    by the 95 % interval of fieller.py. The bootstrap alone underestimates the variance between few
    seeds. A cell without a winner is settled if every method surely misses the target."""
    table = totals(choices, tasks, queries, None)
    winner = _winner(table)
    labels = list(dict.fromkeys(choice.label for choice in choices))
    method = np.asarray([labels.index(choice.label) for choice in choices])  # [L]
    resampled = totals(choices, tasks, queries, bootstrap_weights(choices, draws, seed))
    method_totals = np.stack([resampled[method == index].min(0) for index in range(len(labels))])
    is_unique = np.isfinite(method_totals.min(0)) & (_cheapest(method_totals).sum(0) == 1)
    # [R, Q, A, N], indices into `labels`
    best = np.where(is_unique, _first_cheapest(method_totals), -1)
    share = np.where(winner >= 0, (best == method[winner]).mean(0), np.nan)
    limits = np.asarray(
        [[_share_limits(table) for table in choice.solved] for choice in choices]
    )  # [L, A, 2]
    settled = np.nan_to_num(share) >= CLEAR
    settled &= _is_below_all(choices, winner, settled, tasks, queries, limits)
    misses_surely = np.asarray((limits[..., 1] < LEAST_SOLVED - ROUNDING).all(0))  # [A]
    settled |= (winner < 0) & misses_surely[:, None]
    return Decision(winner, share, settled, table)


def cheapest(
    choices: Sequence[Candidate], tasks: ArrayLike, queries: ArrayLike
) -> NDArray[np.int64]:
    """Return `winner` of `decide` alone: [Q, A, N]."""
    return _winner(totals(choices, tasks, queries, None))


def _winner(table: Array) -> NDArray[np.int64]:
    """Return the first cheapest method of totals [L, ...], -1 if none is finite: [...]."""
    return np.where(np.isfinite(table.min(0)), _first_cheapest(table), -1)


def _is_below_all(
    choices: Sequence[Candidate],
    winner: NDArray[np.int64],
    mask: Bools,
    tasks: ArrayLike,
    queries: ArrayLike,
    limits: Array,
) -> Bools:
    """Return where the winner surely reaches the target and its total is below all others.

    Both by intervals, within `mask`; `limits` [L, A, 2] are those of fractions of solved tasks. The
    others are all that do not surely miss the target."""
    result = mask.copy()
    task_counts = np.asarray(tasks, np.float64)
    for q, a in np.argwhere(mask.any(-1)):
        for index in np.unique(winner[q, a][mask[q, a]]):
            cells = winner[q, a] == index
            result[q, a, cells] &= limits[index, a, 0] >= LEAST_SOLVED - ROUNDING
            for other in range(len(choices)):
                is_other_method = choices[other].label != choices[index].label
                if is_other_method and limits[other, a, 1] >= LEAST_SOLVED - ROUNDING:
                    pair = choices[index], choices[other]
                    below = _is_below(
                        *pair, int(a), float(np.asarray(queries)[q]), task_counts[cells]
                    )
                    result[q, a, cells] &= below
    return result


def _share_limits(solved: Bools) -> tuple[float, float]:
    """Return the 95 % interval of the fraction of tasks solved; 0 to 1 with one seed or task."""
    return share_interval(solved)[1:] if min(solved.shape) > 1 else (0.0, 1.0)


def _is_below(
    choice: Candidate, other: Candidate, target: int, queries: float, tasks: Array
) -> Bools:
    """Return whether the total of `choice` is below that of `other` by its 95 % interval: [N]."""
    width = min(candidate.solved.shape[2] for candidate in (choice, other))
    common = set(_seeds(choice)) & set(_seeds(other))
    paired = bool(choice.origin and common) and choice.origin == other.origin
    pair = [_of_seeds(one, common if paired else None) for one in (choice, other)]
    solved = [candidate.solved[target, :, :width] for candidate in pair]
    if min(*solved[0].shape, *solved[1].shape) < 2 or not all(table.any() for table in solved):
        return np.zeros(tasks.shape, bool)
    costs = [_costs(candidate, table, queries) for candidate, table in zip(pair, solved)]
    limits = difference(*costs, paired=paired).at(tasks)
    return np.asarray(limits.high < -limits.rounding)


def _seeds(choice: Candidate) -> tuple[int, ...]:
    return choice.seeds or tuple(range(choice.solved.shape[1]))


def _of_seeds(choice: Candidate, seeds: set[int] | None) -> Candidate:
    """Return the candidate with these seeds alone, in ascending order; None: all of them."""
    if seeds is None:
        return choice
    own = _seeds(choice)
    places = [own.index(seed) for seed in sorted(seeds)]
    parts = {name: getattr(choice, name)[places] for name in ("up_front", "adapt", "query")}
    return choice._replace(**parts, solved=choice.solved[:, places], seeds=tuple(sorted(seeds)))


def _costs(choice: Candidate, solved: Bools, queries: float) -> Costs:
    """Return the costs of the tasks `solved` [S, E]."""
    cost = (choice.adapt + queries * choice.query)[:, None]  # [S, 1]
    costs = costs_of_solved(choice.up_front, Reached(solved, cost))
    weights = np.asarray([1.0, queries]) / max(float(cost.mean()), 1e-300)
    return costs.timed([(float(weights @ part @ weights), f) for part, f in choice.timing])


def _first_cheapest(table: Array) -> NDArray[np.int64]:
    """Return the first method that is the cheapest up to rounding: [L, ...] -> [...]."""
    return np.asarray(_cheapest(table).argmax(0), np.int64)


def _cheapest(table: Array) -> Bools:
    """Return which methods are the cheapest up to rounding: [L, ...] -> [L, ...]."""
    return np.asarray(table <= table.min(0) * (1 + ROUNDING))


def bootstrap_weights(choices: Sequence[Candidate], draws: int, seed: int) -> list[Array]:
    """Return weights of seeds and tasks in each sample, which sum to 1: L x [R, S * E]."""
    by_origin: dict[tuple[str, tuple[int, ...]], Array] = {}
    by_width: dict[int, Array] = {}
    weights = []
    for index, choice in enumerate(choices):
        _, seeds, width = choice.solved.shape
        numbers = sorted(_seeds(choice))
        origin = (choice.origin or f"{index}", tuple(numbers))
        if origin not in by_origin:
            by_origin[origin] = _counts(draws, seeds, (seed, 1, len(by_origin)))
        places = [numbers.index(number) for number in _seeds(choice)]
        if width not in by_width:
            by_width[width] = _counts(draws, width, (seed, 2, width))
        product = by_origin[origin][:, places, None] * by_width[width][:, None, :]
        weights.append(product.reshape(draws, seeds * width))
    return weights


def _counts(draws: int, size: int, key: tuple[int, ...]) -> Array:
    """Return how often each of `size` items is in each sample, over `size`: [R, size]."""
    generator = np.random.default_rng(key)
    return np.asarray(generator.multinomial(size, np.full(size, 1 / size), draws) / size)


def total_interval(choice: Candidate, tasks: float, queries: float) -> tuple[float, float] | None:
    """Return the 95 % interval of one total, over new seeds and new tasks.

    It is that of fieller.py for the difference from zero cost. `choice` has one target. None with
    one seed or one task, or below LEAST_SOLVED."""
    solved = choice.solved[0]  # [S, E]
    if min(solved.shape) < 2 or float(solved.mean()) < LEAST_SOLVED - ROUNDING:
        return None
    costs = _costs(choice, solved, queries)
    zero_costs = Costs(np.zeros_like(costs.up_front), np.zeros_like(costs.per_task))
    _, low, high, _ = difference(costs, zero_costs, paired=True).at([tasks]).one()
    return max(0.0, low), high
