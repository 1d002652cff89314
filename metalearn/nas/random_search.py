"""Random search: the control that every searcher has to beat (Li & Talwalkar 2019,
arXiv:1902.07638).
"""

from __future__ import annotations

import itertools
from typing import Literal

from metalearn.component import Component, option
from metalearn.nas.search import Ask, Data, Search, Searcher
from metalearn.nas.space import Space, walk
from metalearn.types import Key


class RandomSearch(Component):
    """As many different candidates as the budget pays for, each class of the space as likely as any
    other.
    """

    name: Literal["random"] = option("random", "the searcher")

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            yield Ask(tuple(itertools.islice(walk(space, key), budget)))

        return search
