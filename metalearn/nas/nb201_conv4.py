"""The cells of NAS-Bench-201 (Dong & Yang 2020, arXiv:2001.00326) in the body of Conv4."""

from __future__ import annotations

from typing import Literal

from metalearn.component import Component, option
from metalearn.models.norm import Policy
from metalearn.nas.cells import Downsample, cell_space
from metalearn.nas.space import Space
from metalearn.types import EpisodeSpec


class NB201Conv4(Component):
    """NAS-Bench-201's cells of 4 nodes and 6 edges in the place of Conv4's last three blocks:
    15,625.
    """

    name: Literal["nb201-conv4"] = option("nb201-conv4", "the space")
    filters: int = option(16, "channels of every block", ge=1, le=4096)
    downsample: Downsample = option(
        "stride", "halve by strides or by 2 x 2 max-pooling, as Conv4's field"
    )

    def build(self, spec: EpisodeSpec, policy: Policy = "query_batch") -> Space:
        """The space for image tasks of `spec`, normalised by `policy`."""
        return cell_space(self.name, 4, self.filters, self.downsample, spec, policy)
