"""The smallest space of cells: few enough to train all of them."""

from __future__ import annotations

from typing import ClassVar, Literal

from metalearn.component import option
from metalearn.nas.spaces.cells import CellSpaceComponent


class Conv4Micro(CellSpaceComponent):
    """125 cells of 3 nodes and 3 edges instead of the last three blocks of Conv4; one is Conv4.

    >>> space = ml.nas.Conv4Micro(filters=8).build(ml.tasks.Glyphs().build().spec, "query_batch")
    >>> space.size
    125
    """

    nodes: ClassVar[int] = 3

    name: Literal["conv4-micro"] = option("conv4-micro", "The space.")
