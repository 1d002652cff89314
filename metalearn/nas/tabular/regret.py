"""Regret and rank of architectures in a table, and of searchers that run on a table."""

from __future__ import annotations

import math

import numpy as np

from metalearn.nas.searchers.search import Score, Searcher, choose, run_search
from metalearn.nas.spaces.space import Genotype, Space
from metalearn.nas.tabular.table import Array, Table
from metalearn.types import Key


def regret(table: Table, space: Space, genotype: Genotype, task: int | None = None) -> float:
    """Return the difference of value, in accuracy or loss, of the best network and a genotype."""
    values = table.values(task)
    return float(values.max() - values[table.index(space, genotype)])


def rank(table: Table, space: Space, genotype: Genotype, task: int | None = None) -> int:
    """Return the rank of a genotype among all networks: 1 is the best; ties share the best rank."""
    values = table.values(task)
    return int((values > values[table.index(space, genotype)]).sum()) + 1


def expected_pick(scores: Array, values: Array, draws: int) -> float:
    """Return the mean value of the best-scored of `draws` random networks: scores, values [G].

    With ranks i = 0 .. G-1 by score, P(the best is i) = C(i, n-1) / C(G, n); networks with equal
    scores are equally likely. With scores = values it is the expected maximum of n networks drawn
    without replacement."""
    group, sizes = np.unique(scores, return_inverse=True, return_counts=True)[1:]
    shared = (np.bincount(group, np.asarray(values, np.float64)) / sizes)[group]
    order, count = np.argsort(group, kind="stable"), len(scores)
    draws = min(draws, count)
    chances = [math.comb(index, draws - 1) / math.comb(count, draws) for index in range(count)]
    return float(np.dot(chances, shared[order]))


def random_control(table: Table, draws: int, task: int | None = None, truth: bool = False) -> float:
    """Return the exact expected regret of random search with `draws` candidates.

    `truth` ranks them by their values, not by the scores of the table."""
    values = table.values(task)
    scores = values if truth else table.scores(task)[0]
    return float(values.max()) - expected_pick(scores, values, draws)


def mean_architecture(table: Table, task: int | None = None) -> float:
    """Return the expected regret of a random network, the baseline of every search."""
    values = table.values(task)
    return float(values.max() - values.mean())


def simulate(
    table: Table,
    space: Space,
    searcher: Searcher,
    key: Key,
    budget: int,
    task: int | None = None,
    standard_errors: float = 0.0,
    truth: bool = False,
) -> Genotype:
    """Return the genotype that a searcher chooses on a table, for one task or the mean of all."""
    values = table.values(task)

    def score(genotype: Genotype, share: float) -> Score:
        row = table.index(space, genotype)
        if truth:
            return Score(float(values[row]))
        scores, errors = table.scores(task, share)
        return Score(float(scores[row]), float(errors[row]))

    return choose(
        space, run_search(searcher(key, budget, None), score, budget), standard_errors
    ).genotype
