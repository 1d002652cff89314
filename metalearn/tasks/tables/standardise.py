"""Inputs of a table with mean 0 and standard deviation 1, by the rows of the training split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn.errors import ConfigError

ROUNDING = 1e-6  # deviations up to this share of a mean are those of a constant in float32
Moments = tuple[tuple[float, ...], tuple[float, ...]]  # means [F], standard deviations [F]


def moments(x: NDArray[Any], rows: NDArray[np.int64]) -> Moments:
    """Of each input over some rows of x [R, F]; a deviation within rounding of 0 counts as 1.

    ConfigError for inputs that are no columns of numbers, and without a row."""
    if x.ndim != 2:
        text = f"is for columns of numbers; x has rows of shape {list(x.shape[1:])}"
        raise ConfigError(("standardise", text))
    if not len(rows):
        raise ConfigError(("standardise", "needs rows of the training split, and there are none"))
    known = x[rows].astype(np.float64)
    means, deviations = known.mean(0), known.std(0)
    deviations[deviations <= ROUNDING * np.abs(means)] = 1
    return tuple(means.tolist()), tuple(deviations.tolist())


def standardise(x: Tensor, found: Moments) -> Tensor:
    """(x - mean) / deviation: [B, F] -> [B, F]."""
    mean, deviation = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in found)
    return (x - mean) / deviation
