"""Student's t distribution, from scipy, which the first call imports."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def t_quantile(probability: float, freedom: ArrayLike) -> Array:
    """Return the quantile of Student's t: degrees of freedom [...] -> [...].

    Raises ValueError outside its domain."""
    from scipy import special

    degrees = np.asarray(freedom, np.float64)
    if not 0 < probability < 1 or (degrees < 1).any():
        text = f"needs 0 < probability < 1 and freedom >= 1; got {probability} and {degrees}"
        raise ValueError(text)
    return np.asarray(special.stdtrit(degrees, probability))


def two_sided_p(value: float, error: float, freedom: float) -> float:
    """Return P(|T| >= |value| / error) of Student's t; 1 if value is 0, else 0 if error is 0."""
    from scipy import special

    if value == 0 or error == 0:
        return float(value == 0)
    return float(2 * special.stdtr(freedom, -abs(value) / error))
