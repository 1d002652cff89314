"""Spectra: measured reflectance curves of 4,161 soils."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.component import option
from metalearn.tasks import store
from metalearn.tasks.images import SPLITS, SplitTask
from metalearn.tasks.prepared.curves import CurveSource, curve_spec
from metalearn.tasks.prepared.file import PreparedFile
from metalearn.types import EpisodeSpec

CURVES, BANDS = 4161, 180
FILE = PreparedFile(
    source="spectra",
    file="spectra.npz",
    sha256="01e2b0a2111d0fc401c23abd6f994206a6186f5d7d603c913d60a8a1147ce99f",
    arrays={
        "reflectance": ((CURVES, BANDS), "float32"),
        "wavelength": ((BANDS,), "float32"),
        "split": ((CURVES,), "int8"),
    },
    origin="it is made of the Python package earthlib 1.1.0 (ICRAF-ISRIC soil library)",
)


class Spectra(SplitTask):
    """Predict the reflectance spectrum of a soil from a few wavelengths.

    A task is one curve of 180 bands, 400 to 2450 nm with two gaps; K (wavelength, reflectance)
    points are the support set. Splits are whole 5-degree cells: 2889 / 424 / 848 curves. The input
    is (wavelength - 1425) / 600. With `standardise` y = (reflectance - m) / s by mean and standard
    deviation of all training values; `facts` has s, and loss * s^2 is that of reflectances. Raises
    ConfigError, DataError.

    >>> source = ml.tasks.Spectra(shots=10).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 10, 1])
    """

    default_model: ClassVar[str] = "mlp"
    source: Literal["spectra"] = option("spectra", "The task source.")
    ways: Literal[1] = option(1, "Always 1: regression has no classes.")
    shots: int = option(5, "K, bands in the support set.", ge=1)
    queries: int = option(50, "Q, bands in the query set.", ge=0)
    standardise: bool = option(
        True,
        "Standardise the targets to mean 0 and standard deviation 1 over the training curves.",
        fixed_by_training=True,
    )

    def source_of(self, **where: Any) -> SpectraSource:
        spec = curve_spec(self, BANDS, 1, **where)
        data = FILE.load()
        train = data["reflectance"][data["split"] == 0].astype(np.float64)
        mean, deviation = (train.mean(), train.std()) if self.standardise else (0.0, 1.0)
        y = data["reflectance"][data["split"] == SPLITS.index(where["split"])].astype(np.float64)
        x = (data["wavelength"].astype(np.float64) - 1425) / 600
        source = SpectraSource(spec, x, (y - mean) / deviation)
        source.facts["scale"] = round(float(deviation), 6)
        return source


class SpectraSource(CurveSource):
    """Points of curves y [curves, bands] over x [bands], float64."""

    def __init__(self, spec: EpisodeSpec, x: store.Array, y: store.Array) -> None:
        super().__init__(spec, len(y), len(x), FILE.data_sha256())
        self._x, self._y = (
            torch.tensor(v, dtype=torch.float64, device=spec.device) for v in (x, y)
        )

    def values(self, keys: Tensor, curve: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._x[index].unsqueeze(-1), self._y[curve].gather(-1, index)
