"""Inputs of a table with mean 0 and standard deviation 1, by the rows of the training split."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.logger import log

LARGE = 10.0  # root of the mean square
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


def warn_of_scale(split: str, inputs: Tensor, targets: Tensor | None) -> None:
    """A warning, once, where training rows [R, ...] of a regression make gradient steps diverge."""
    if split == "train" and targets is not None:
        _warn_if_large("inputs", inputs, "set standardise: true")
        _warn_if_large("targets", targets, "subtract a constant from the column, and divide it")


def _warn_if_large(name: str, values: Tensor, remedy: str) -> None:
    flat = values.double().flatten(1)
    size, column = flat.square().mean(0).sqrt().max(0)
    if size > LARGE:
        mean, deviation = float(flat[:, column].mean()), float(flat[:, column].std())
        text = f"task: {name} have mean {mean:.3g} and deviation {deviation:.3g} in the training "
        _warn_once(f"{text}split, and gradient steps need numbers of about unit size: {remedy}")


@functools.cache
def _warn_once(text: str) -> None:
    log.warning(text)
