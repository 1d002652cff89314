"""Synchronous successive halving (Karnin et al. 2013; Jamieson & Talwalkar 2016)."""

from __future__ import annotations

import itertools
from typing import Literal

from metalearn.component import option
from metalearn.nas.searchers.search import SLACK, Ask, Data, Search, Searcher, SearcherComponent
from metalearn.nas.spaces.space import Space, shuffled
from metalearn.types import Key


class Halving(SearcherComponent):
    """Successive halving: train many random candidates briefly, and the best of each rung longer.

    Karnin et al. 2013, algorithm 3; arXiv:1502.07943. Every rung trains from scratch, and costs as
    much. A rung is scored completely before the next begins: an asynchronous rule would promote the
    first candidates of a batch without competition.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.Halving(factor=2).build(space)
    >>> next(search(ml.fold_in(0), 8, None)).genotypes[0]
    (0, 0, 3, 0, 1, 0)
    """

    name: Literal["halving"] = option("halving", "The searcher.")
    factor: int = option(
        3, "eta, ratio between two rungs of the numbers of candidates, and of steps.", ge=2, le=16
    )
    rungs: int = option(
        3, "Number of rungs; candidates of the last one are fully trained.", ge=1, le=10
    )

    def build(self, space: Space) -> Searcher:
        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            plan = self.plan(budget)
            candidates = tuple(itertools.islice(shuffled(space, key), plan[0][0]))
            for size, fraction in plan:
                candidates = candidates[:size]
                values = yield Ask(candidates, fraction)
                order = sorted(range(len(candidates)), key=lambda index: -values[index])
                candidates = tuple(candidates[index] for index in order)

        return search

    def plan(self, budget: int) -> list[tuple[int, float]]:
        """Return (candidates, fraction of the full training) of each rung, within `budget`.

        A budget too small for one candidate on every rung gets fewer rungs."""

        def rung_plan(first: int, rungs: int) -> list[tuple[int, float]]:
            eta = self.factor
            return [
                (max(1, first // eta**rung), float(eta) ** (rung + 1 - rungs))
                for rung in range(rungs)
            ]

        def affordable(first: int, rungs: int) -> bool:
            cost = sum(size * fraction for size, fraction in rung_plan(first, rungs))
            return cost <= budget + SLACK

        rungs = next(rungs for rungs in range(self.rungs, 0, -1) if affordable(1, rungs))
        first = 1
        while affordable(first + 1, rungs):
            first += 1
        return rung_plan(first, rungs)
