"""Regularised evolution (Real, Aggarwal, Huang & Le 2019, arXiv:1802.01548, algorithm 1)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Literal

from metalearn.component import option
from metalearn.nas.searchers.search import Ask, Data, Search, Searcher, SearcherComponent
from metalearn.nas.spaces.space import Genotype, Space, mutate, shuffled
from metalearn.rng import choice, fold_in
from metalearn.types import Key

TRIES = 50


class Evolution(SearcherComponent):
    """Regularised (ageing) evolution: mutate the best of a random sample, remove the oldest.

    Departure: a child that was already scored is mutated again, as its score would be the same.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.Evolution(population=4).build(space)
    >>> next(search(ml.fold_in(0), 8, None)).genotypes[0]
    (2, 1, 0, 1, 1, 1)
    """

    name: Literal["evolution"] = option("evolution", "The searcher.")
    population: int | None = option(
        None, "P, size of the population; null: a quarter of the budget, at least 2.", ge=2
    )
    sample: int | None = option(
        None, "S, size of the sample that a parent is chosen from; null: half the population.", ge=1
    )

    def build(self, space: Space) -> Searcher:
        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            size = min(self.population or max(2, budget // 4), budget)
            fresh = shuffled(space, fold_in(key, "start"))
            first = tuple(itertools.islice(fresh, size))
            values = yield Ask(first)
            members = deque(zip(first, values), maxlen=size)  # the oldest is first
            scored = set(first)
            for number in range(budget - len(first)):
                rivals = min(self.sample or max(1, size // 2), len(members))
                sample = choice(fold_in(key, "parent", number), len(members), rivals).tolist()
                parent = max((members[index] for index in sample), key=lambda pair: pair[1])[0]
                child = _child(space, fold_in(key, "child", number), parent, scored, fresh)
                if child is None:
                    return
                scored.add(child)
                (value,) = yield Ask((child,))
                members.append((child, value))

        return search


def _child(
    space: Space, key: Key, parent: Genotype, scored: set[Genotype], fresh: Iterator[Genotype]
) -> Genotype | None:
    """Return a new mutation of the parent, with one more mutation at every try.

    A random candidate if all tries fail; None if the whole space is scored."""
    child = parent
    for attempt in range(TRIES):
        child = mutate(space, fold_in(key, attempt), child)
        if child not in scored:
            return child
    return next((genotype for genotype in fresh if genotype not in scored), None)
