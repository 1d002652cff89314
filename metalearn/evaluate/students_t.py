"""Student's t distribution, from scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metalearn.errors import ConfigError

Array = NDArray[np.float64]


def t_quantile(probability: float, freedom: ArrayLike) -> Array:
    """Quantile of Student's t: degrees of freedom [...] -> [...]; ValueError outside its domain."""
    degrees = np.asarray(freedom, np.float64)
    if not 0 < probability < 1 or (degrees < 1).any():
        text = f"needs 0 < probability < 1 and freedom >= 1; got {probability} and {degrees}"
        raise ValueError(text)
    return np.asarray(scipy_module("special").stdtrit(degrees, probability))


def two_sided_p(value: float, error: float, freedom: float) -> float:
    """P(|T| >= |value| / error) of Student's t; 1 for a value of 0, 0 for another without error."""
    if value == 0 or error == 0:
        return float(value == 0)
    return float(2 * scipy_module("special").stdtr(freedom, -abs(value) / error))


def scipy_module(name: str) -> Any:
    """A module of scipy, imported by the first call that needs it; ConfigError without scipy."""
    try:
        import scipy.special
        import scipy.stats
    except ImportError as error:
        text = "is not installed, and intervals need it: pip install scipy"
        raise ConfigError(("scipy", text)) from error
    return getattr(scipy, name)
