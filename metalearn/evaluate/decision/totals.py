"""Total cost of n new tasks with q queries each, and the cheapest method that reaches a target.

    total = U + n (adapt + q query) / share

U is spent before the first task, `adapt` on learning one task, `query` on answering one query; the
share of tasks solved makes it the cost of n solved tasks. A method with a share below LEAST_SOLVED
does not reach the target. Letters: S seeds, E tasks, A targets, Q numbers of queries, N numbers of
tasks, R draws of the bootstrap, L methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.breakeven import LEAST_SOLVED
from metalearn.evaluate.fieller import Costs, difference
from metalearn.evaluate.targets import Reached, costs_of_solved

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROUNDING = 1e-9
DRAWS = 200
CLEAR = 0.95  # share of draws in which the cheapest one must win for the data to settle it


class Candidate(NamedTuple):
    """One method as a way of learning new tasks; those of one label are checkpoints of it."""

    label: str
    up_front: Array  # [S]
    adapt: Array  # [S], of one task
    query: Array  # [S], of one query
    solved: Bools  # [A, S, E]
    origin: str = ""  # the trained network that it starts from: its seeds are drawn together
    step: int | None = None  # after which its meta-training stops; None: all of it


class Decision(NamedTuple):
    """The cheapest method of each cell: -1 where no method reaches the target."""

    winner: NDArray[np.int64]  # [Q, A, N], places in the list of choices
    share: Array  # [Q, A, N], of the draws in which it alone wins; NaN without a winner
    settled: Bools  # [Q, A, N]
    totals: Array  # [L, Q, A, N], infinite where the target is not reached


def totals(
    choices: Sequence[Candidate], tasks: ArrayLike, queries: ArrayLike, at: Sequence[Array] | None
) -> Array:
    """Total costs by the means of every method: [L, (R,) Q, A, N]; infinite below LEAST_SOLVED.

    `at` holds weights [R, S * E] of each method's seeds and tasks; None: all the same."""
    found = []
    for place, choice in enumerate(choices):
        count, seeds, width = choice.solved.shape
        if at is None:
            weights = np.full((1, seeds * width), 1.0 / (seeds * width))
        else:
            weights = at[place]
        share = weights @ choice.solved.reshape(count, -1).T  # [R, A]
        of_seed = weights.reshape(-1, seeds, width).sum(-1)  # [R, S]
        up, adapt, query = (of_seed @ part for part in choice[1:4])  # [R]
        each = adapt[:, None] + np.asarray(queries, np.float64) * query[:, None]  # [R, Q]
        found.append(_total(up, each, share, np.asarray(tasks, np.float64)))
    whole = np.stack(found)
    return whole[:, 0] if at is None else whole


def _total(up: Array, each: Array, share: Array, tasks: Array) -> Array:
    """[R], [R, Q], [R, A], [N] -> [R, Q, A, N]."""
    reached = share >= LEAST_SOLVED - ROUNDING
    per_solved = np.where(reached, 1 / np.where(reached, share, 1.0), np.inf)
    cost = _times(each[:, :, None], per_solved[:, None])  # [R, Q, A]
    return np.asarray(up[:, None, None, None] + cost[..., None] * tasks)


def _times(a: Array, b: Array) -> Array:
    """The product; infinite where a cost of 0 meets a target that is not reached."""
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
    """The cheapest method for every number of queries and tasks and every target.

    A method costs what the cheapest of its checkpoints costs. That is somewhat too low where there
    are several, as the scores that give their cost choose among them; no interval corrects for it.
    `share` is from a bootstrap over seeds and tasks: tasks are drawn alike for all methods, seeds
    alike for those of one origin. The first of equally cheap methods wins, but no draw.

    `settled`: the share is at least CLEAR, and the winner's total is below that of every other
    method that reaches the target by the 95 % interval of fieller.py. The bootstrap alone knows too
    little of the variance between few seeds."""
    whole = totals(choices, tasks, queries, None)
    least = whole.min(0)
    winner = np.where(np.isfinite(least), _first(whole), -1)
    labels = list(dict.fromkeys(choice.label for choice in choices))
    method = np.asarray([labels.index(choice.label) for choice in choices])  # [L]
    each = totals(choices, tasks, queries, bootstrap_weights(choices, draws, seed))
    drawn = np.stack([each[method == number].min(0) for number in range(len(labels))])
    alone = np.isfinite(drawn.min(0)) & (_cheapest(drawn).sum(0) == 1)
    best = np.where(alone, _first(drawn), -1)  # [R, Q, A, N], places in `labels`
    share = np.where(winner >= 0, (best == method[winner]).mean(0), np.nan)
    settled = np.nan_to_num(share) >= CLEAR
    settled &= _apart(choices, whole, winner, settled, tasks, queries)
    return Decision(winner, share, settled, whole)


def _apart(
    choices: Sequence[Candidate],
    whole: Array,
    winner: NDArray[np.int64],
    asked: Bools,
    tasks: ArrayLike,
    queries: ArrayLike,
) -> Bools:
    """Where the winner's total is below all others by intervals: [Q, A, N]; only of `asked`."""
    found = asked.copy()
    numbers = np.asarray(tasks, np.float64)
    for q, a in np.argwhere(asked.any(-1)):
        for place in np.unique(winner[q, a][asked[q, a]]):
            mine = winner[q, a] == place
            for other in range(len(choices)):
                rival = choices[other].label != choices[place].label
                if rival and np.isfinite(whole[other, q, a]).any():
                    pair = choices[place], choices[other]
                    below = _below(*pair, int(a), float(np.asarray(queries)[q]), numbers[mine])
                    found[q, a, mine] &= below
    return found


def _below(one: Candidate, other: Candidate, target: int, queries: float, tasks: Array) -> Bools:
    """Whether the total of `one` is below that of `other` by its 95 % interval: [N]."""
    width = min(choice.solved.shape[2] for choice in (one, other))
    solved = [choice.solved[target, :, :width] for choice in (one, other)]
    if min(*solved[0].shape, *solved[1].shape) < 2 or not all(part.any() for part in solved):
        return np.zeros(tasks.shape, bool)
    paired = bool(one.origin) and one.origin == other.origin and len(solved[0]) == len(solved[1])
    spent = [_spent(choice, part, queries) for choice, part in zip((one, other), solved)]
    found = difference(*spent, paired=paired).at(tasks)
    return np.asarray(found.high < -found.rounding)


def _spent(choice: Candidate, solved: Bools, queries: float) -> Costs:
    """Costs of the tasks `solved` [S, E]."""
    cost = (choice.adapt + queries * choice.query)[:, None]  # [S, 1]
    return costs_of_solved(choice.up_front, Reached(solved, cost))


def _first(whole: Array) -> NDArray[np.int64]:
    """The first method that is the cheapest up to rounding: [L, ...] -> [...]."""
    return np.asarray(_cheapest(whole).argmax(0), np.int64)


def _cheapest(whole: Array) -> Bools:
    """The methods that are the cheapest up to rounding: [L, ...] -> [L, ...]."""
    return np.asarray(whole <= whole.min(0) * (1 + ROUNDING))


def bootstrap_weights(choices: Sequence[Candidate], draws: int, seed: int) -> list[Array]:
    """Weights of seeds and tasks in each draw, which sum to 1: L x [R, S * E]."""
    by_origin: dict[tuple[str, int], Array] = {}
    by_width: dict[int, Array] = {}
    found = []
    for place, choice in enumerate(choices):
        _, seeds, width = choice.solved.shape
        origin = (choice.origin or f"{place}", seeds)
        if origin not in by_origin:
            by_origin[origin] = _counts(draws, seeds, (seed, 1, len(by_origin)))
        if width not in by_width:
            by_width[width] = _counts(draws, width, (seed, 2, width))
        both = by_origin[origin][:, :, None] * by_width[width][:, None, :]
        found.append(both.reshape(draws, seeds * width))
    return found


def _counts(draws: int, size: int, key: tuple[int, ...]) -> Array:
    """How often each of `size` items is in each draw, over `size`: [R, size]."""
    generator = np.random.default_rng(key)
    return np.asarray(generator.multinomial(size, np.full(size, 1 / size), draws) / size)


def total_interval(choice: Candidate, tasks: float, queries: float) -> tuple[float, float] | None:
    """The 95 % interval of one total, over new seeds and new tasks.

    That of fieller.py for the difference from nothing. `choice` has one target. None with one seed
    or one task, or below LEAST_SOLVED."""
    solved = choice.solved[0]  # [S, E]
    if min(solved.shape) < 2 or float(solved.mean()) < LEAST_SOLVED - ROUNDING:
        return None
    spent = _spent(choice, solved, queries)
    nothing = Costs(np.zeros_like(spent.up_front), np.zeros_like(spent.per_task))
    _, low, high, _ = difference(spent, nothing, paired=True).at([tasks]).one()
    return max(0.0, low), high
