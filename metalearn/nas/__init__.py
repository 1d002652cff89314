"""Architecture search: spaces, searchers, three methods, and a benchmark whose truth is known."""

from __future__ import annotations

from metalearn.component import MethodComponent, ModelComponent
from metalearn.nas.architecture import Architecture
from metalearn.nas.meta_nas import MetaNAS
from metalearn.nas.per_task import PerTaskNAS
from metalearn.nas.searchers import SEARCHERS
from metalearn.nas.searchers.darts import DARTS
from metalearn.nas.searchers.evolution import Evolution
from metalearn.nas.searchers.halving import Halving
from metalearn.nas.searchers.one_shot import OneShot
from metalearn.nas.searchers.proxies import Proxy
from metalearn.nas.searchers.random_search import RandomSearch
from metalearn.nas.searchers.tpe import TPE
from metalearn.nas.shared import SharedNAS
from metalearn.nas.spaces import SPACES
from metalearn.nas.spaces.conv4_micro import Conv4Micro
from metalearn.nas.spaces.conv4_size import Conv4Size
from metalearn.nas.spaces.mlp_reg import MLPReg
from metalearn.nas.spaces.nb201_conv4 import NB201Conv4

NAS: dict[str, type[MethodComponent]] = {
    "per_task_nas": PerTaskNAS,
    "shared_nas": SharedNAS,
    "meta_nas": MetaNAS,
}
NAS_MODELS: dict[str, type[ModelComponent]] = {"architecture": Architecture}

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
