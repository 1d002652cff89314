"""Tides: heights at 3,072 stations, computed from measured harmonic constants."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.tasks import store
from metalearn.tasks.images import SPLITS, SplitTask
from metalearn.tasks.prepared.curves import CurveSource, curve_spec
from metalearn.tasks.prepared.file import PreparedFile
from metalearn.types import EpisodeSpec

STATIONS, CONSTITUENTS = 3072, 21
FILE = PreparedFile(
    source="tides",
    file="tides.npz",
    sha256="0b088707e50b12e2aca14ba7e0b6f45a74bc8ab1014b520894999ed5d6407343",
    arrays={
        "speed": ((CONSTITUENTS,), "float64"),
        "amplitude": ((STATIONS, CONSTITUENTS), "float32"),
        "phase": ((STATIONS, CONSTITUENTS), "float32"),
        "split": ((STATIONS,), "int8"),
        "shift_split": ((STATIONS,), "int8"),
    },
    origin="it is made of the npm package @neaps/tide-database 0.10.20260924",
)
HOURS, POINTS, YEAR = 168, 336, 8766  # window, its half-hour steps, hours in a year


class Tides(SplitTask):
    """Predict the tide at a station over a week from a few readings, a real sinusoid regression.

    height(t) = sum_c amplitude_c cos(speed_c t + phase_c), c = M2, S2, ... (21 constituents), t in
    hours; K of the 336 half-hours are the support set. `fixed`: the window begins at t = 0, a
    spring-tide week, and phases are shared knowledge; `free`: at an hour drawn from a year. Inputs
    are days from the middle of the window, or cos and sin at the 21 known speeds. Constants come
    from gauge records; heights are computed. Raises ConfigError, DataError.

    >>> source = ml.tasks.Tides(shots=10).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 10, 1])
    """

    default_model: ClassVar[str] = "mlp"
    split_fields: ClassVar[tuple[str, ...]] = ("split_scheme",)
    source: Literal["tides"] = option("tides", "The task source.")
    ways: Literal[1] = option(1, "Always 1: regression has no classes.")
    shots: int = option(10, "K, readings in the support set.", ge=1)
    queries: int = option(50, "Q, readings in the query set.", ge=0)
    window: Literal["fixed", "free"] = option("fixed", "Start of the week: t = 0, or any hour.")
    split_scheme: Literal["cells", "shift"] = option(
        "cells",
        "Split of the stations: by whole 15-degree cells, or Americas / Europe / "
        "the rest of the world.",
    )
    inputs: Literal["time", "harmonics"] = option(
        "time",
        "Inputs: the time [1], or cos and sin at the known speeds [42].",
        fixed_by_training=True,
    )
    scale: Literal["unit", "metres"] = option(
        "unit",
        "Heights divided by the root mean square of the station, or in metres.",
        fixed_by_training=True,
    )

    def source_of(self, **where: Any) -> TideSource:
        data, code = FILE.load(), SPLITS.index(where["split"])
        splits = data["split" if self.split_scheme == "cells" else "shift_split"]
        rows = np.flatnonzero(splits == code)
        width = 1 if self.inputs == "time" else 2 * CONSTITUENTS
        spec = curve_spec(self, POINTS, width, **where)
        amplitude, phase = (data[name][rows].astype(np.float64) for name in ("amplitude", "phase"))
        if self.scale == "unit":
            amplitude /= np.sqrt((amplitude**2).sum(1, keepdims=True) / 2)
        return TideSource(self, spec, data["speed"], amplitude, phase)


class TideSource(CurveSource):
    """Readings of stations whose constants are [stations, 21] float64, phases in degrees."""

    def __init__(
        self,
        options: Tides,
        spec: EpisodeSpec,
        speed: store.Array,
        amplitude: store.Array,
        phase: store.Array,
    ) -> None:
        super().__init__(spec, len(amplitude), POINTS, FILE.data_sha256())
        self._options = options
        self._speed, self._amplitude, self._phase = (
            torch.tensor(values, dtype=torch.float64, device=spec.device)
            for values in (speed * math.pi / 180, amplitude, phase * math.pi / 180)
        )

    def values(self, keys: Tensor, curve: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        begin = torch.zeros_like(curve)
        if self._options.window == "free":
            begin = rng.integers(rng.fold_in(keys, "begin"), (1,), YEAR).squeeze(-1)
        inside = index.to(torch.float64) * HOURS / POINTS  # [T, B] hours from the begin
        angle = self._speed * (begin.unsqueeze(-1) + inside).unsqueeze(-1)  # [T, B, 21]
        amplitude, phase = self._amplitude[curve], self._phase[curve]  # [T, 21]
        y = (amplitude.unsqueeze(1) * torch.cos(angle + phase.unsqueeze(1))).sum(-1)
        if self._options.inputs == "time":
            return ((inside - HOURS / 2) / 24).unsqueeze(-1), y
        angles = self._speed * inside.unsqueeze(-1)  # where the window begins is not an input
        return torch.cat([angles.cos(), angles.sin()], -1), y
