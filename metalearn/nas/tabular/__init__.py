"""A benchmark whose truth is known: every network of a small space, trained on the same tasks."""

from metalearn.nas.tabular.measure import measure
from metalearn.nas.tabular.regret import (
    expected_pick,
    mean_architecture,
    random_control,
    rank,
    regret,
    simulate,
)
from metalearn.nas.tabular.table import Row, Table, empty, load, with_row

__all__ = [
    "Row",
    "Table",
    "empty",
    "expected_pick",
    "load",
    "mean_architecture",
    "measure",
    "random_control",
    "rank",
    "regret",
    "simulate",
    "with_row",
]
