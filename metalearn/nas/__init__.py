"""Architecture search: spaces, searchers, per-task and shared search, a benchmark whose truth is
known.
"""

from __future__ import annotations

from metalearn.component import Component, MethodComponent
from metalearn.nas.architecture import Architecture
from metalearn.nas.conv4_micro import Conv4Micro
from metalearn.nas.conv4_size import Conv4Size
from metalearn.nas.darts import DARTS
from metalearn.nas.evolution import Evolution
from metalearn.nas.halving import Halving
from metalearn.nas.meta_nas import MetaNAS
from metalearn.nas.mlp_reg import MLPReg
from metalearn.nas.nb201_conv4 import NB201Conv4
from metalearn.nas.one_shot import OneShot
from metalearn.nas.per_task import PerTaskNAS
from metalearn.nas.proxies import Proxy
from metalearn.nas.random_search import RandomSearch
from metalearn.nas.shared import SharedNAS
from metalearn.nas.tables import SEARCHERS, SPACES
from metalearn.nas.tpe import TPE

NAS: dict[str, type[MethodComponent]] = {
    "per_task_nas": PerTaskNAS,
    "shared_nas": SharedNAS,
    "meta_nas": MetaNAS,
}
NAS_MODELS: dict[str, type[Component]] = {"architecture": Architecture}

__all__ = [
    "DARTS",
    "NAS",
    "NAS_MODELS",
    "SEARCHERS",
    "SPACES",
    "TPE",
    "Architecture",
    "Conv4Micro",
    "Conv4Size",
    "Evolution",
    "Halving",
    "MLPReg",
    "MetaNAS",
    "NB201Conv4",
    "OneShot",
    "PerTaskNAS",
    "Proxy",
    "RandomSearch",
    "SharedNAS",
]
