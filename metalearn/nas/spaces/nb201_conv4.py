"""The cells of NAS-Bench-201 (Dong & Yang 2020, arXiv:2001.00326) in the body of Conv4."""

from __future__ import annotations

from typing import ClassVar, Literal

from metalearn.component import option
from metalearn.nas.spaces.cells import CellSpaceComponent


class NB201Conv4(CellSpaceComponent):
    """The 15,625 cells of NAS-Bench-201, with 4 nodes, instead of the last three blocks of Conv4.

    >>> space = ml.nas.NB201Conv4(filters=8).build(ml.tasks.Glyphs().build().spec, "query_batch")
    >>> space.size
    15625
    """

    nodes: ClassVar[int] = 4

    name: Literal["nb201-conv4"] = option("nb201-conv4", "The space.")
