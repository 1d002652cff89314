"""Regularised evolution (Real, Aggarwal, Huang & Le 2019, arXiv:1802.01548, algorithm 1)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Literal

from metalearn.component import Component, option
from metalearn.nas.search import Ask, Data, Search, Searcher
from metalearn.nas.space import Genotype, Space, mutate, walk
from metalearn.rng import choice, fold_in
from metalearn.types import Key

TRIES = 50


class Evolution(Component):
    """A population whose oldest member dies: the best of a random sample has a mutated child.

    Departure: a child that was scored before is mutated again, as a candidate here has one score
    and asking twice would buy nothing.
    """

    name: Literal["evolution"] = option("evolution", "the searcher")
    population: int | None = option(
        None, "P, members; null: a quarter of the budget, at least 2", ge=2
    )
    sample: int | None = option(
        None, "S, members that compete to be parent; null: half the population", ge=1
    )

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            size = min(self.population or max(2, budget // 4), budget)
            fresh = walk(space, fold_in(key, "start"))
            first = tuple(itertools.islice(fresh, size))
            values = yield Ask(first)
            living = deque(
                zip(first, values), maxlen=size
            )  # the oldest is at the left, and falls out first
            seen = set(first)
            for born in range(budget - len(first)):
                rivals = min(self.sample or max(1, size // 2), len(living))
                chosen = choice(fold_in(key, "parent", born), len(living), rivals).tolist()
                parent = max((living[member] for member in chosen), key=lambda member: member[1])[0]
                child = _child(space, fold_in(key, "child", born), parent, seen, fresh)
                if child is None:
                    return
                seen.add(child)
                (value,) = yield Ask((child,))
                living.append((child, value))

        return search


def _child(
    space: Space, key: Key, parent: Genotype, seen: set[Genotype], fresh: Iterator[Genotype]
) -> Genotype | None:
    """A mutation of the parent that is new, further away with every try; None where the whole space
    is known.
    """
    child = parent
    for attempt in range(TRIES):
        child = mutate(space, fold_in(key, attempt), child)
        if child not in seen:
            return child
    return next((genotype for genotype in fresh if genotype not in seen), None)
