"""Meta-learned initializations and metric learners."""

from __future__ import annotations

from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.boil import BOIL
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.meta_sgd import MetaSGD
from metalearn.algorithms.proto_net import ProtoNet
from metalearn.algorithms.reptile import Reptile
from metalearn.component import MethodComponent

ALGORITHMS: dict[str, type[MethodComponent]] = {
    "maml": MAML,
    "anil": ANIL,
    "boil": BOIL,
    "reptile": Reptile,
    "meta_sgd": MetaSGD,
    "proto_net": ProtoNet,
}

__all__ = ["ALGORITHMS", "ANIL", "BOIL", "MAML", "MetaSGD", "ProtoNet", "Reptile"]
