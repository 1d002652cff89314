"""Total cost of n new tasks with q queries each, and the cheapest method that reaches a target.

    total = U + n (adapt + q query) / share

U is spent before the first task, `adapt` on learning one task, `query` on answering one query; the
share of tasks solved makes it the cost of n solved tasks. A method with a share below LEAST_SOLVED
does not reach the target. Letters: S seeds, E tasks, A targets, Q numbers of queries, N numbers of
tasks, R draws of the bootstrap, L methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.evaluate.breakeven import LEAST_SOLVED
from metalearn.evaluate.fieller import Costs, difference

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROUNDING = 1e-9
DRAWS = 200
CLEAR = 0.95  # share of draws in which the cheapest one must win for the data to settle it


class Choice(NamedTuple):
    """One method as a way of learning new tasks."""

    label: str
    up_front: Array  # [S]
    adapt: Array  # [S], of one task
    query: Array  # [S], of one query
    solved: Bools  # [A, S, E]
    origin: str = ""  # the trained network that it starts from: its seeds are drawn together


class Decision(NamedTuple):
    """The cheapest method of each cell: -1 where no method reaches the target."""

    winner: NDArray[np.int64]  # [Q, A, N], places in the list of choices
    share: Array  # [Q, A, N], of the draws in which it wins; NaN without a winner
    totals: Array  # [L, Q, A, N], infinite where the target is not reached


def totals(
    choices: Sequence[Choice], tasks: ArrayLike, queries: ArrayLike, at: Sequence[Array] | None
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
    choices: Sequence[Choice],
    tasks: ArrayLike,
    queries: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Decision:
    """The cheapest method for every number of queries and tasks and every target.

    `share` is from a bootstrap over seeds and tasks: tasks are drawn alike for all methods, seeds
    alike for those of one origin. The first of equally cheap methods wins."""
    whole = totals(choices, tasks, queries, None)
    least = whole.min(0)
    winner = np.where(np.isfinite(least), _first(whole), -1)
    drawn = totals(choices, tasks, queries, bootstrap_weights(choices, draws, seed))
    best = np.where(np.isfinite(drawn.min(0)), _first(drawn), -1)  # [R, Q, A, N]
    share = np.where(winner >= 0, (best == winner).mean(0), np.nan)
    return Decision(winner, share, whole)


def _first(whole: Array) -> NDArray[np.int64]:
    """The first method that is the cheapest up to rounding: [L, ...] -> [...]."""
    least = whole.min(0)
    with np.errstate(invalid="ignore"):
        equal = whole <= least * (1 + ROUNDING)
    return np.asarray(equal.argmax(0), np.int64)


def bootstrap_weights(choices: Sequence[Choice], draws: int, seed: int) -> list[Array]:
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


def total_interval(choice: Choice, tasks: float, queries: float) -> tuple[float, float] | None:
    """The 95 % interval of one total, over new seeds and new tasks.

    That of fieller.py for the difference from nothing, where each task enters by the linearised
    ratio of cost to share (Cochran 1977, Sampling Techniques, section 2.11). `choice` has one
    target. None with one seed or one task, or below LEAST_SOLVED."""
    solved = choice.solved[0].astype(np.float64)  # [S, E]
    share = float(solved.mean())
    if min(solved.shape) < 2 or share < LEAST_SOLVED - ROUNDING:
        return None
    cost = (choice.adapt + queries * choice.query)[:, None]  # [S, 1]
    each = float(cost.mean()) / share
    spent = Costs(choice.up_front, each + (cost - each * solved) / share)
    nothing = Costs(*(np.zeros_like(part) for part in spent))
    value, half, _ = (
        float(part[0]) for part in difference(spent, nothing, paired=True).at([tasks])
    )
    return max(0.0, value - half), value + half
