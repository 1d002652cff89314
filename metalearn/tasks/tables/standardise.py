"""Standardise columns of a table with the mean and standard deviation of the training split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.logger import warn_once

LARGE = 10.0  # root of the mean square
# standard deviations up to this fraction of a mean are those of a constant
ROUNDING, ROUNDING_FLOAT64 = 1e-6, 1e-12
RESOLVED = (
    1e-3  # fraction of a standard deviation that predictions in the units of the data resolve
)
Moments = tuple[tuple[float, ...], tuple[float, ...]]  # means [F], standard deviations [F]


def moments(x: NDArray[Any], rows: NDArray[np.int64]) -> Moments:
    """Return the moments of each column over some rows of x [R, F].

    A standard deviation within rounding of 0 counts as 1. Raises ConfigError if x does not have
    columns of numbers, and without a row."""
    if x.ndim != 2:
        text = f"needs columns of numbers, but x has rows of shape {list(x.shape[1:])}"
        raise ConfigError(("standardise", text))
    if not len(rows):
        raise ConfigError(("standardise", "needs rows of the training split, but it has none"))
    training = x[rows].astype(np.float64)
    means, deviations = training.mean(0), training.std(0)
    rounding = np.where(_is_float32(training), ROUNDING, ROUNDING_FLOAT64)
    deviations[deviations <= rounding * np.abs(means)] = 1
    return tuple(means.tolist()), tuple(deviations.tolist())


def _is_float32(x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether columns of [R, F] have float32 numbers, which may be rounded: [F].

    Whole numbers that float32 counts one by one are not rounded."""
    with np.errstate(over="ignore"):
        short = (x == x.astype(np.float32)).all(0)
    integral = ((x == np.round(x)) & (np.abs(x) < 2**24)).all(0)
    return np.asarray(short & ~integral)


def standardise(x: Tensor, found: Moments) -> Tensor:
    """Return (x - mean) / standard deviation: [B, F] -> [B, F]."""
    mean, deviation = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in found)
    return (x - mean) / deviation


def restore(values: Tensor, found: Moments) -> Tensor:
    """Return values * std + mean, the inverse of `standardise`: [..., F] -> [..., F].

    float64 if the type of `values` would not resolve a thousandth of a standard deviation."""
    mean, deviation = (
        torch.tensor(part, dtype=torch.float64, device=values.device) for part in found
    )
    step = torch.finfo(values.dtype).eps * max(abs(part) for part in found[0])
    coarse = step > RESOLVED * min(found[1])
    restored = values.double() * deviation + mean
    return restored if coarse else restored.to(values.dtype)


def resolve_moments(
    configured: Moments | None, rows: NDArray[Any], training: NDArray[np.int64], name: str
) -> Moments:
    """Return the configured moments of rows [R, F], else those of the training rows.

    `name` is their field. Raises ConfigError unless there is one of each column."""
    result = configured or moments(rows, training)
    if min(result[1], default=1) <= 0:
        raise ConfigError((name, "must be means, and standard deviations > 0"))
    if any((len(part),) != rows.shape[1:] for part in result):
        text = f"are of {len(result[0])} columns, and rows have {list(rows.shape[1:])}"
        raise ConfigError((name, text))
    return result


def check_scale(split: str, inputs: Tensor, targets: Tensor | None, dtype: torch.dtype) -> None:
    """Raise ConfigError for numbers in rows [R, ...] that `dtype` cannot represent.

    Warns once if columns vary by less than it resolves, and if training rows of a regression
    would make gradient steps diverge."""
    _check_type("inputs", inputs, dtype)
    if targets is not None:
        _check_type("targets", targets, dtype)
    if split == "train" and targets is not None:
        _warn_if_large("inputs", inputs, "set standardise: true")
        _warn_if_large("targets", targets, "set standardise_targets: true")


def _warn_if_large(name: str, values: Tensor, remedy: str) -> None:
    flat = values.double().flatten(1)
    size, column = flat.square().mean(0).sqrt().max(0)
    if size > LARGE:
        mean, deviation = float(flat[:, column].mean()), float(flat[:, column].std())
        text = f"task: {name} have mean {mean:.3g} and std {deviation:.3g} in the training "
        warn_once(f"{text}split, but gradient steps need values of about unit scale: {remedy}")


def _check_type(name: str, values: Tensor, dtype: torch.dtype) -> None:
    kind, converted = str(dtype).removeprefix("torch."), values.to(dtype)
    if not converted.isfinite().all():
        text = f"hold {float(values.abs().max()):.3g}, which {kind} has no number for: scale them"
        raise ConfigError((name, text))
    if values.dim() != 2 or not len(values) or values.dtype == dtype:
        return
    varies = values.amax(0) > values.amin(0)
    lost = (varies & (converted.amax(0) == converted.amin(0))).nonzero().flatten().tolist()
    if lost:
        text = f"task: {name} of column {lost[0] + 1} vary by less than {kind} resolves and all"
        warn_once(
            f"{text} become {float(converted[0, lost[0]]):.6g}: subtract a constant from them"
        )
