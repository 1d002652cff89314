"""Distributions of one swept parameter: those of W&B's sweep schema, by their names there.

A sampler samples from a `Unit`; `value_of` turns the sample into the parameter's value with the
inverse of the distribution function, so every sampler of Optuna supports every distribution.
Distributions whose name begins with `q_` are rounded to multiples of `q`."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, get_args

from pydantic import model_validator

from metalearn.component import Component, option

GRID_MOST = 100_000  # points that a grid may have
EDGE = 1e-6  # distance from 0 and 1 at which distributions without ends are tried


class Unit(NamedTuple):
    """The range of a sampler: numbers between two ends, or positions in a list."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    position: bool = False


PROBABILITY = Unit(0.0, 1.0)


class Distribution(Component):
    """The values of one parameter."""

    distribution: str
    q: int | float | None = option(None, "Step of a q_ distribution, 1 by default.", gt=0)

    @model_validator(mode="after")
    def _q_belongs(self) -> Distribution:
        if self.q is not None and not self.distribution.startswith("q_"):
            raise ValueError(f"{self.distribution} does not accept q: use q_{self.distribution}")
        return self

    @property
    def countable(self) -> bool:
        """Whether a grid can list the values."""
        return False

    def unit(self) -> Unit | None:
        """Return the range to sample from; None for a fixed value."""
        return PROBABILITY

    def value_of(self, sample: Any) -> Any:
        """Return the parameter's value for a sample of `unit`."""
        raise TypeError(f"{type(self).__name__} does not define value")

    def grid(self) -> list[Any]:
        """Return the samples for which `value_of` gives every value in turn."""
        return []

    def probes(self) -> list[Any]:
        """Return values that must all be legal: every value of a list, else both ends."""
        unit = self.unit()
        if unit is None or unit.position:
            return [self.value_of(sample) for sample in self.grid()]
        edge = EDGE if unit == PROBABILITY else 0.0
        return [self.value_of(unit.low + edge), self.value_of(unit.high - edge)]

    def rounded(self, value: float) -> int | float:
        """Return the nearest multiple of q; without q the value itself."""
        if not self.distribution.startswith("q_"):
            return value
        q = self.q or 1
        return q * round(value / q) if math.isfinite(value / q) else value


class Constant(Distribution):
    """One value."""

    distribution: Literal["constant"] = option("constant", "Name of the distribution.")
    value: Any = option(..., "The value.")

    @property
    def countable(self) -> bool:
        return True

    def unit(self) -> None:
        return None

    def value_of(self, sample: Any) -> Any:
        return self.value

    def grid(self) -> list[Any]:
        return [0]


class Categorical(Distribution):
    """A list of values, with equal or specified probabilities."""

    distribution: Literal["categorical", "categorical_w_probabilities"] = option(
        "categorical", "Name of the distribution."
    )
    values: list[Any] = option(..., "List of values.", min_length=1, max_length=10_000)
    probabilities: list[float] | None = option(None, "One probability per value, with sum 1.")

    @model_validator(mode="after")
    def _probabilities_fit(self) -> Categorical:
        chances = self.probabilities
        if (chances is None) == self.weighted:
            other = "needs" if self.weighted else "takes no"
            raise ValueError(f"{self.distribution} {other} probabilities")
        if chances is None:
            return self
        if len(chances) != len(self.values):
            raise ValueError(f"{len(self.values)} values and {len(chances)} probabilities")
        if min(chances) < 0 or not math.isclose(sum(chances), 1, rel_tol=1e-6):
            text = f"probabilities must be >= 0 with sum 1 (got sum {sum(chances):g})"
            raise ValueError(text)
        return self

    @property
    def weighted(self) -> bool:
        return self.distribution == "categorical_w_probabilities"

    @property
    def countable(self) -> bool:
        return not self.weighted

    def unit(self) -> Unit:
        if self.weighted:
            return PROBABILITY
        return Unit(0, len(self.values) - 1, whole=True, position=True)

    def value_of(self, sample: Any) -> Any:
        if self.probabilities is None:
            return self.values[sample]
        ends = list(itertools.accumulate(self.probabilities))
        possible = [index for index, chance in enumerate(self.probabilities) if chance > 0]
        return self.values[
            next((index for index in possible if sample < ends[index]), possible[-1])
        ]

    def grid(self) -> list[Any]:
        return list(range(len(self.values)))

    def probes(self) -> list[Any]:
        return list(self.values)


class Interval(Distribution):
    """Numbers between min and max, uniform themselves or in their logarithm.

    For log_uniform, inv_log_uniform and q_log_uniform min and max are exponents of e."""

    distribution: Literal[
        "uniform",
        "q_uniform",
        "log_uniform_values",
        "inv_log_uniform_values",
        "q_log_uniform_values",
        "log_uniform",
        "inv_log_uniform",
        "q_log_uniform",
    ] = option("uniform", "Name of the distribution.")
    min: float = option(..., "Smallest value.")
    max: float = option(..., "Largest value.")

    @model_validator(mode="after")
    def _ends_fit(self) -> Interval:
        largest = max(abs(self.min), abs(self.max))
        if self.min >= self.max:
            raise ValueError(f"min must be < max (got {self.min} and {self.max})")
        if self.log_values and self.min <= 0:
            raise ValueError(f"a logarithmic scale needs min > 0 (got {self.min})")
        if self.exponents and largest > 700:
            text = (
                "min and max are exponents of e: use log_uniform_values for the values themselves"
            )
            raise ValueError(text)
        if self.countable and largest / (self.q or 1) > 2**53:
            text = f"q = {self.q} is too small relative to min and max to represent its multiples"
            raise ValueError(text)
        if self.countable and not self.grid():
            ends = f"between min {self.min} and max {self.max}"
            raise ValueError(f"no multiple of q = {self.q or 1} lies {ends}")
        return self

    @property
    def log_values(self) -> bool:
        return self.distribution.endswith("log_uniform_values")

    @property
    def exponents(self) -> bool:
        return self.distribution.endswith("log_uniform")

    @property
    def countable(self) -> bool:
        return self.distribution == "q_uniform"

    def unit(self) -> Unit:
        return Unit(self.min, self.max, log=self.log_values)

    def value_of(self, sample: Any) -> Any:
        sign = -1 if self.distribution == "inv_log_uniform" else 1
        return self.rounded(math.exp(sign * sample) if self.exponents else sample)

    def grid(self) -> list[Any]:
        q = self.q or 1
        first, last = math.ceil(self.min / q - 1e-9), math.floor(self.max / q + 1e-9)
        return [q * step for step in range(first, min(last, first + GRID_MOST) + 1)]


class Integers(Distribution):
    """Every whole number from min to max."""

    distribution: Literal["int_uniform"] = option("int_uniform", "Name of the distribution.")
    min: int = option(..., "Smallest value.", ge=-(2**53), le=2**53)
    max: int = option(..., "Largest value.", ge=-(2**53), le=2**53)

    @model_validator(mode="after")
    def _ascends(self) -> Integers:
        if self.min > self.max:
            raise ValueError(f"min must be <= max (got {self.min} and {self.max})")
        return self

    @property
    def countable(self) -> bool:
        return True

    def unit(self) -> Unit:
        return Unit(self.min, self.max, whole=True)

    def value_of(self, sample: Any) -> Any:
        return int(sample)

    def grid(self) -> list[Any]:
        return list(range(self.min, min(self.max, self.min + GRID_MOST) + 1))


class Normal(Distribution):
    """A normal distribution; the log_ ones are exp(x) with x normal."""

    distribution: Literal["normal", "q_normal", "log_normal", "q_log_normal"] = option(
        "normal", "Name of the distribution."
    )
    mu: float = option(0.0, "Mean.")
    sigma: float = option(1.0, "Standard deviation.", gt=0)

    @model_validator(mode="after")
    def _representable(self) -> Normal:
        if "log" in self.distribution and abs(self.mu) + 8 * self.sigma > 700:
            raise ValueError("mu and sigma describe the exponent of e: use smaller numbers")
        return self

    def value_of(self, sample: Any) -> Any:
        x = NormalDist(self.mu, self.sigma).inv_cdf(min(max(sample, 1e-12), 1 - 1e-12))
        return self.rounded(math.exp(x) if "log" in self.distribution else x)


class Beta(Distribution):
    """A beta distribution on 0..1."""

    distribution: Literal["beta", "q_beta"] = option("beta", "Name of the distribution.")
    a: float = option(1.0, "First shape parameter.", gt=0)
    b: float = option(1.0, "Second shape parameter.", gt=0)

    def value_of(self, sample: Any) -> Any:
        from scipy.stats import beta

        return self.rounded(float(beta.ppf(sample, self.a, self.b)))


DISTRIBUTIONS: dict[str, type[Distribution]] = {
    name: kind
    for kind in (Constant, Categorical, Interval, Integers, Normal, Beta)
    for name in get_args(kind.model_fields["distribution"].annotation)
}


def default_distribution(values: dict[str, Any]) -> str | None:
    """Return the distribution that W&B infers from a parameter's keys, or None."""
    if "values" in values:
        return "categorical_w_probabilities" if "probabilities" in values else "categorical"
    if "value" in values:
        return "constant"
    if "min" in values or "max" in values:
        whole = all(type(values.get(end)) is int for end in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    return None
