"""Meta-learned initializations and metric learners."""

from __future__ import annotations

from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.boil import BOIL
from metalearn.algorithms.cavia import CAVIA
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.matching_net import MatchingNet
from metalearn.algorithms.meta_curvature import MetaCurvature
from metalearn.algorithms.meta_sgd import MetaSGD
from metalearn.algorithms.proto_maml import ProtoMAML
from metalearn.algorithms.proto_net import ProtoNet
from metalearn.algorithms.r2d2 import R2D2
from metalearn.algorithms.reptile import Reptile
from metalearn.component import MethodComponent

ALGORITHMS: dict[str, type[MethodComponent]] = {
    "maml": MAML,
    "anil": ANIL,
    "boil": BOIL,
    "reptile": Reptile,
    "meta_sgd": MetaSGD,
    "proto_net": ProtoNet,
    "proto_maml": ProtoMAML,
    "matching_net": MatchingNet,
    "r2d2": R2D2,
    "meta_curvature": MetaCurvature,
    "cavia": CAVIA,
}

__all__ = [
    "ALGORITHMS",
    "ANIL",
    "BOIL",
    "CAVIA",
    "MAML",
    "R2D2",
    "MatchingNet",
    "MetaCurvature",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
]
