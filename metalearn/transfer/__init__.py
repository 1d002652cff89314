"""Plain transfer, and learning without any: what meta-learning has to beat."""

from __future__ import annotations

from metalearn.component import MethodComponent
from metalearn.transfer.baseline_plus_plus import BaselinePlusPlus
from metalearn.transfer.fine_tune import FineTune
from metalearn.transfer.linear_probe import LinearProbe
from metalearn.transfer.nearest_centroid import NearestCentroid
from metalearn.transfer.scratch import Scratch

TRANSFER: dict[str, type[MethodComponent]] = {
    "scratch": Scratch,
    "fine_tune": FineTune,
    "linear_probe": LinearProbe,
    "nearest_centroid": NearestCentroid,
    "baseline_plus_plus": BaselinePlusPlus,
}

__all__ = ["TRANSFER", "BaselinePlusPlus", "FineTune", "LinearProbe", "NearestCentroid", "Scratch"]
