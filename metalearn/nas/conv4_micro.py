"""The smallest space of cells: few enough to train every one."""

from __future__ import annotations

from typing import Literal

from metalearn.component import Component, option
from metalearn.models.norm import Policy
from metalearn.nas.cells import Downsample, cell_space
from metalearn.nas.space import Space
from metalearn.types import EpisodeSpec


class Conv4Micro(Component):
    """Cells of 3 nodes and 3 edges in the place of Conv4's last three blocks: 125, Conv4 among
    them.
    """

    name: Literal["conv4-micro"] = option("conv4-micro", "the space")
    filters: int = option(16, "channels of every block", ge=1, le=4096)
    downsample: Downsample = option(
        "stride", "halve by strides or by 2 x 2 max-pooling, as Conv4's field"
    )

    def build(self, spec: EpisodeSpec, policy: Policy = "query_batch") -> Space:
        """The space for image tasks of `spec`, normalised by `policy`."""
        return cell_space(self.name, 3, self.filters, self.downsample, spec, policy)
