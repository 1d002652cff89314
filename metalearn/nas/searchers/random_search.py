"""Random search, the control of every searcher (Li & Talwalkar 2019, arXiv:1902.07638)."""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

from metalearn.component import MethodComponent, option
from metalearn.nas.searchers.search import Ask, Data, Search, Searcher, SearcherComponent
from metalearn.nas.spaces.space import Space, shuffled
from metalearn.types import Key


class RandomSearch(SearcherComponent):
    """Different random candidates, as many as the budget allows; all are equally likely.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.RandomSearch().build(space)
    >>> next(search(ml.fold_in(0), 8, None)).genotypes[0]
    (0, 0, 3, 0, 1, 0)
    """

    is_control: ClassVar[bool] = True
    name: Literal["random"] = option("random", "The searcher.")

    def build(self, space: Space) -> Searcher:
        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            yield Ask(tuple(itertools.islice(shuffled(space, key), budget)))

        return search


def control_methods(
    method: MethodComponent, candidates: int
) -> dict[str, tuple[str, MethodComponent]]:
    """Return `MethodComponent.controls` of a search with a budget of `candidates`.

    Li & Talwalkar 2019 and Yang et al. 2020 (arXiv:1912.12522): a search is worth what it finds
    beyond random search with the same budget, and beyond a network drawn at random."""
    rows = {
        "random": ("random search with as many candidates", candidates),
        "mean": ("the mean random architecture", 1),
    }
    return {
        suffix: (text, method.model_copy(update={"searcher": RandomSearch(), "candidates": count}))
        for suffix, (text, count) in rows.items()
    }
