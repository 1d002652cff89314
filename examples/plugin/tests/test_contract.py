"""The components keep metalearn's contracts."""

from metalearn_signs import Rings, SignMAML

from metalearn.inner import Adam
from metalearn.testing import check_method, check_source


def test_sign_maml_is_a_method() -> None:
    check_method(SignMAML(inner_lr=0.05, outer=Adam(lr=0.02)))


def test_rings_are_a_task_source() -> None:
    check_source(Rings(ways=3, shots=2, queries=3))
