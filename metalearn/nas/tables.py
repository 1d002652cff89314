"""Spaces and searchers by name, and the types of the fields that choose one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metalearn.component import Component
from metalearn.nas.conv4_micro import Conv4Micro
from metalearn.nas.conv4_size import Conv4Size
from metalearn.nas.darts import DARTS
from metalearn.nas.evolution import Evolution
from metalearn.nas.halving import Halving
from metalearn.nas.mlp_reg import MLPReg
from metalearn.nas.nb201_conv4 import NB201Conv4
from metalearn.nas.one_shot import OneShot
from metalearn.nas.proxies import ON_DATA, Proxy
from metalearn.nas.random_search import RandomSearch
from metalearn.nas.tpe import TPE

SPACES: dict[str, type[Component]] = {
    "conv4-micro": Conv4Micro,
    "nb201-conv4": NB201Conv4,
    "conv4-size": Conv4Size,
    "mlp-reg": MLPReg,
}
SEARCHERS: dict[str, type[Component]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "tpe": TPE,
    "halving": Halving,
    "darts": DARTS,
    "one-shot": OneShot,
    "proxy": Proxy,
}
SpaceChoice = Annotated[Conv4Micro | NB201Conv4 | Conv4Size | MLPReg, Field(discriminator="name")]
SearcherChoice = Annotated[
    RandomSearch | Evolution | TPE | Halving | DARTS | OneShot | Proxy, Field(discriminator="name")
]


def looks_at_data(searcher: Component) -> bool:
    """Whether a searcher trains or measures networks itself, on the data that it is handed."""
    return isinstance(searcher, DARTS | OneShot) or (
        isinstance(searcher, Proxy) and searcher.measure in ON_DATA
    )
