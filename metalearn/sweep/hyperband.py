"""Early termination: hyperband (Li et al. 2018, arXiv:1603.06560) as W&B's sweeps apply it.

At validation b of a band a trial continues if its value is among the best 1/eta of all trials so
far: value <= sorted(values at b)[floor(n / eta)]. `strict` compares the value at b, otherwise the
trial's best value so far is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from metalearn.component import Component, option

Curve = Mapping[int, float]  # number of the validation, from 1 on -> value, smaller is better


class EarlyTerminate(Component):
    """Early termination by Hyperband (Li et al. 2018): the best 1/eta continue after each band."""

    type: Literal["hyperband"] = option(..., "The rule: hyperband.")
    min_iter: int | None = option(
        None, "Validations before the first band; the next band is eta times later.", ge=1
    )
    max_iter: int | None = option(
        None,
        "Validations of a complete trial; bands are at max_iter / eta, max_iter / eta^2, ... "
        "Takes precedence over min_iter if s is set, as in W&B.",
        ge=1,
    )
    s: int | None = option(None, "Number of bands, with max_iter.", ge=1, le=100)
    eta: float = option(3.0, "The best 1/eta of the trials continue after a band.", gt=1)
    strict: bool = option(
        True,
        "Compare the value at the band; false: the best value so far, which stops fewer trials.",
    )

    @model_validator(mode="after")
    def _has_bands(self) -> EarlyTerminate:
        if self.min_iter is None and self.max_iter is None:
            raise ValueError("set either min_iter, or max_iter and s")
        if self.max_iter is not None and self.s is None:
            raise ValueError("max_iter needs s, the number of bands")
        if not self.bands(1):
            raise ValueError("has no band: max_iter must be >= eta")
        return self

    def bands(self, count: int) -> list[int]:
        """Return the validations at which trials are compared, up to one at or beyond `count`."""
        if self.max_iter is not None:
            ends = [int(self.max_iter / self.eta**index) for index in range(1, 1 + (self.s or 1))]
            return sorted({end for end in ends if end >= 1})
        bands: list[int] = []
        band = float(self.min_iter or 1)
        while not bands or bands[-1] < count:
            bands.append(int(band))
            band *= self.eta
        return bands


def should_continue(rule: EarlyTerminate, curves: Mapping[int, Curve], number: int) -> bool:
    """Return whether trial `number` continues beyond its last validation."""
    mine = curves[number]
    count = max(mine, default=0)
    passed = [band for band in rule.bands(count) if band <= count and band in mine]
    if not passed:
        return True
    band = passed[-1]
    values = sorted(curve[band] for curve in curves.values() if band in curve)
    threshold = values[int(len(values) / rule.eta)]
    return (mine[band] if rule.strict else min(mine.values())) <= threshold
