"""Synchronous successive halving (Karnin et al. 2013, algorithm 3; Jamieson & Talwalkar 2016,
arXiv:1502.07943).
"""

from __future__ import annotations

import itertools
from typing import Literal

from metalearn.component import Component, option
from metalearn.nas.search import SLACK, Ask, Data, Search, Searcher
from metalearn.nas.space import Space, walk
from metalearn.types import Key


class Halving(Component):
    """Many random candidates trained a little; the best share of them goes on to a longer training,
    and again.

    Every rung trains from the start again, and is charged so. All of a rung is scored before any
    goes on: an asynchronous rule would let the first of a batch on for want of rivals.
    """

    name: Literal["halving"] = option("halving", "the searcher")
    factor: int = option(
        3, "eta, between the candidates and the trainings of two rungs", ge=2, le=16
    )
    rungs: int = option(3, "how many; the last one trains fully", ge=1, le=10)

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            plan = self.plan(budget)
            field = tuple(itertools.islice(walk(space, key), plan[0][0]))
            for size, share in plan:
                field = field[:size]
                values = yield Ask(field, share)
                order = sorted(range(len(field)), key=lambda place: -values[place])
                field = tuple(field[place] for place in order)

        return search

    def plan(self, budget: int) -> list[tuple[int, float]]:
        """(candidates, share of the full training) of each rung: the most that `budget` full
        trainings pay for.

        A budget that does not even pay for one candidate on every rung gets fewer rungs.
        """

        def of(first: int, rungs: int) -> list[tuple[int, float]]:
            eta = self.factor
            return [
                (max(1, first // eta**rung), float(eta) ** (rung + 1 - rungs))
                for rung in range(rungs)
            ]

        def paid(first: int, rungs: int) -> bool:
            return sum(size * share for size, share in of(first, rungs)) <= budget + SLACK

        rungs = next(rungs for rungs in range(self.rungs, 0, -1) if paid(1, rungs))
        first = 1
        while paid(first + 1, rungs):
            first += 1
        return of(first, rungs)
