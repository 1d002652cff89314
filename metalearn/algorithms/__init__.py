"""Meta-learned initializations and metric learners."""

from __future__ import annotations

from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.boil import BOIL
from metalearn.algorithms.cavia import CAVIA
from metalearn.algorithms.gradient.alfa import ALFA
from metalearn.algorithms.gradient.imaml import IMAML
from metalearn.algorithms.gradient.imaml_hessian_free import HessianFreeIMAML
from metalearn.algorithms.gradient.maml_plus_plus import MAMLPlusPlus
from metalearn.algorithms.gradient.t_net import TNet
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.matching_net import MatchingNet
from metalearn.algorithms.meta_curvature import MetaCurvature
from metalearn.algorithms.meta_sgd import MetaSGD
from metalearn.algorithms.metric.meta_baseline import MetaBaseline
from metalearn.algorithms.metric.metaopt_net import MetaOptNet
from metalearn.algorithms.metric.metaopt_svm import MetaOptSVM
from metalearn.algorithms.metric.pmf import PMF
from metalearn.algorithms.metric.relation_net import RelationNet
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
    "maml_plus_plus": MAMLPlusPlus,
    "imaml": IMAML,
    "imaml_hessian_free": HessianFreeIMAML,
    "alfa": ALFA,
    "t_net": TNet,
    "relation_net": RelationNet,
    "metaopt_net": MetaOptNet,
    "metaopt_svm": MetaOptSVM,
    "meta_baseline": MetaBaseline,
    "pmf": PMF,
}

__all__ = [
    "ALFA",
    "ALGORITHMS",
    "ANIL",
    "BOIL",
    "CAVIA",
    "IMAML",
    "MAML",
    "PMF",
    "R2D2",
    "HessianFreeIMAML",
    "MAMLPlusPlus",
    "MatchingNet",
    "MetaBaseline",
    "MetaCurvature",
    "MetaOptNet",
    "MetaOptSVM",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "RelationNet",
    "Reptile",
    "TNet",
]
