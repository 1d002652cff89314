"""Searchers by name, and the type of the fields that choose one."""

from __future__ import annotations

from typing import Annotated

from metalearn.component import OneOf
from metalearn.nas.searchers.darts import DARTS
from metalearn.nas.searchers.evolution import Evolution
from metalearn.nas.searchers.halving import Halving
from metalearn.nas.searchers.one_shot import OneShot
from metalearn.nas.searchers.proxies import Proxy
from metalearn.nas.searchers.random_search import RandomSearch
from metalearn.nas.searchers.search import SearcherComponent
from metalearn.nas.searchers.tpe import TPE

SEARCHERS: dict[str, type[SearcherComponent]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "tpe": TPE,
    "halving": Halving,
    "darts": DARTS,
    "one-shot": OneShot,
    "proxy": Proxy,
}
SearcherChoice = Annotated[
    RandomSearch | Evolution | TPE | Halving | DARTS | OneShot | Proxy,
    OneOf(SEARCHERS, SearcherComponent, "searcher"),
]
