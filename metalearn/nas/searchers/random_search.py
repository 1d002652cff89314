"""Random search, the control of every searcher (Li & Talwalkar 2019, arXiv:1902.07638)."""

from __future__ import annotations

import itertools
from typing import Literal

from metalearn.component import option
from metalearn.nas.searchers.search import Ask, Data, Search, Searcher, SearcherComponent
from metalearn.nas.spaces.space import Space, shuffled
from metalearn.types import Key


class RandomSearch(SearcherComponent):
    """Different random candidates, as many as the budget allows; all are equally likely."""

    name: Literal["random"] = option("random", "The searcher.")

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            yield Ask(tuple(itertools.islice(shuffled(space, key), budget)))

        return search
