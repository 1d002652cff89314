"""The contract suite for any component, in pytest or in a plain script.

from metalearn.testing import check_method

def test_contract():
    check_method(SignMAML(inner_lr=0.1))"""

from metalearn.testing.case import Case, method_case
from metalearn.testing.clusters import Clusters
from metalearn.testing.methods import METHOD_CHECKS, check_method
from metalearn.testing.models import MODEL_CHECKS, ModelCase, check_model
from metalearn.testing.sources import SOURCE_CHECKS, SourceCase, check_source

__all__ = [
    "METHOD_CHECKS",
    "MODEL_CHECKS",
    "SOURCE_CHECKS",
    "Case",
    "Clusters",
    "ModelCase",
    "SourceCase",
    "check_method",
    "check_model",
    "check_source",
    "method_case",
]
