"""How the values of one swept parameter are spread: every distribution of W&B's sweep schema, by
its name there.

A sampler draws a latent number, which `of` turns into the parameter's value by the inverse of its
distribution function; so Optuna's samplers serve them all, and know each prior. Numbers with `q`
are rounded to multiples of it."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import model_validator

from metalearn.component import Component, option
from metalearn.errors import ConfigError

GRID_MOST = 100_000  # points that a grid may have
EDGE = 1e-6  # of the unit interval that stands for distributions without ends


class Latent(NamedTuple):
    """What a sampler draws: a number of a range, whole numbers or a logarithmic scale; or a place
    in a list.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    place: bool = False


UNIT = Latent(0.0, 1.0)


class Spread(Component):
    """The values of one parameter."""

    countable: ClassVar[bool] = False  # whether a grid can go through them

    def latent(self) -> Latent | None:
        """What is drawn; None: nothing, the value is fixed."""
        return UNIT

    def of(self, drawn: Any) -> Any:
        return drawn

    def grid(self) -> list[Any]:
        """What `of` takes, for every value in turn."""
        return []

    def probes(self) -> list[Any]:
        """Values that must be legal for all to be: both ends, or every one."""
        latent = self.latent()
        if latent is None or latent.place:
            return [self.of(drawn) for drawn in self.grid()]
        edge = EDGE if latent == UNIT else 0.0
        return [self.of(latent.low + edge), self.of(latent.high - edge)]


class Constant(Spread):
    """One value."""

    distribution: Literal["constant"] = option("constant", "its name")
    value: Any = option(..., "the value")
    countable: ClassVar[bool] = True

    def latent(self) -> Latent | None:
        return None

    def of(self, drawn: Any) -> Any:
        return self.value

    def grid(self) -> list[Any]:
        return [0]


class Categorical(Spread):
    """A list of values, each as likely as the others."""

    distribution: Literal["categorical"] = option("categorical", "its name")
    values: list[Any] = option(..., "the list", min_length=1, max_length=10_000)
    countable: ClassVar[bool] = True

    def latent(self) -> Latent | None:
        return Latent(0, len(self.values) - 1, whole=True, place=True)

    def of(self, drawn: Any) -> Any:
        return self.values[drawn]

    def grid(self) -> list[Any]:
        return list(range(len(self.values)))


class Weighted(Spread):
    """A list of values with the probability of each."""

    distribution: Literal["categorical_w_probabilities"] = option(
        "categorical_w_probabilities", "its name"
    )
    values: list[Any] = option(..., "the list", min_length=1, max_length=10_000)
    probabilities: list[float] = option(..., "one for each value, their sum is 1")

    @model_validator(mode="after")
    def _fit(self) -> Weighted:
        if len(self.probabilities) != len(self.values):
            raise ValueError(
                f"{len(self.values)} values and {len(self.probabilities)} probabilities"
            )
        if min(self.probabilities) < 0 or not math.isclose(
            sum(self.probabilities), 1, rel_tol=1e-6
        ):
            raise ValueError(
                f"probabilities should be at least 0 with the sum 1, not "
                f"{sum(self.probabilities):g}"
            )
        return self

    def of(self, drawn: Any) -> Any:
        ends = list(itertools.accumulate(self.probabilities))
        possible = [place for place, chance in enumerate(self.probabilities) if chance > 0]
        return self.values[next((place for place in possible if drawn < ends[place]), possible[-1])]

    def probes(self) -> list[Any]:
        return list(self.values)


class _Span(Spread):
    min: float = option(..., "smallest value")
    max: float = option(..., "largest value")

    @model_validator(mode="after")
    def _ascends(self) -> _Span:
        if self.min >= self.max:
            raise ValueError(f"min {self.min} should be below max {self.max}")
        return self

    def latent(self) -> Latent | None:
        return Latent(self.min, self.max)


class Uniform(_Span):
    """Every number between two ends, each as likely."""

    distribution: Literal["uniform"] = option("uniform", "its name")


class _Rounded(Spread):
    q: int | float = option(1, "the step: values are its multiples", gt=0)

    def round(self, value: float) -> int | float:
        steps = value / self.q
        return self.q * round(steps) if math.isfinite(steps) else value


class RoundedUniform(_Rounded, _Span):
    """Multiples of q between two ends."""

    distribution: Literal["q_uniform"] = option("q_uniform", "its name")
    countable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _holds_some(self) -> RoundedUniform:
        if max(abs(self.min), abs(self.max)) / self.q > 2**53:
            raise ValueError(
                f"q = {self.q} is too small beside min and max: its multiples cannot be told apart"
            )
        if not self.grid():
            raise ValueError(
                f"no multiple of q = {self.q} lies between min {self.min} and max {self.max}"
            )
        return self

    def of(self, drawn: Any) -> Any:
        return self.round(drawn)

    def grid(self) -> list[Any]:
        first, last = math.ceil(self.min / self.q - 1e-9), math.floor(self.max / self.q + 1e-9)
        return [self.q * step for step in range(first, min(last, first + GRID_MOST) + 1)]


class WholeUniform(Spread):
    """Every whole number from one end to the other."""

    distribution: Literal["int_uniform"] = option("int_uniform", "its name")
    min: int = option(..., "smallest value", ge=-(2**53), le=2**53)
    max: int = option(..., "largest value", ge=-(2**53), le=2**53)
    countable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _ascends(self) -> WholeUniform:
        if self.min > self.max:
            raise ValueError(f"min {self.min} should not be above max {self.max}")
        return self

    def latent(self) -> Latent | None:
        return Latent(self.min, self.max, whole=True)

    def of(self, drawn: Any) -> Any:
        return int(drawn)

    def grid(self) -> list[Any]:
        return list(range(self.min, min(self.max, self.min + GRID_MOST) + 1))


class LogUniform(_Span):
    """Between two ends, equally likely on a logarithmic scale."""

    distribution: Literal["log_uniform_values", "inv_log_uniform_values"] = option(
        "log_uniform_values", "its name"
    )

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if self.min <= 0:
            raise ValueError(f"a logarithmic scale needs min above 0, not {self.min}")
        return self

    def latent(self) -> Latent | None:
        return Latent(self.min, self.max, log=True)


class RoundedLogUniform(_Rounded, LogUniform):
    """Multiples of q, equally likely on a logarithmic scale."""

    distribution: Literal["q_log_uniform_values"] = option("q_log_uniform_values", "its name")  # type: ignore[assignment]

    def of(self, drawn: Any) -> Any:
        return self.round(drawn)


class Exponents(_Span):
    """exp(x), x between two ends; for inv_log_uniform exp(-x)."""

    distribution: Literal["log_uniform", "inv_log_uniform"] = option("log_uniform", "its name")

    @model_validator(mode="after")
    def _representable(self) -> Exponents:
        if max(abs(self.min), abs(self.max)) > 700:
            raise ValueError(
                "min and max are exponents of e here: for the values themselves say "
                "log_uniform_values"
            )
        return self

    def of(self, drawn: Any) -> Any:
        return math.exp(-drawn if self.distribution == "inv_log_uniform" else drawn)


class RoundedExponents(_Rounded, Exponents):
    """exp(x) rounded to multiples of q."""

    distribution: Literal["q_log_uniform"] = option("q_log_uniform", "its name")  # type: ignore[assignment]

    def of(self, drawn: Any) -> Any:
        return self.round(super().of(drawn))


class Normal(Spread):
    """A normal distribution."""

    distribution: Literal["normal"] = option("normal", "its name")
    mu: float = option(0.0, "mean")
    sigma: float = option(1.0, "standard deviation", gt=0)

    def of(self, drawn: Any) -> Any:
        return NormalDist(self.mu, self.sigma).inv_cdf(min(max(drawn, 1e-12), 1 - 1e-12))


class RoundedNormal(_Rounded, Normal):
    """A normal distribution rounded to multiples of q."""

    distribution: Literal["q_normal"] = option("q_normal", "its name")  # type: ignore[assignment]

    def of(self, drawn: Any) -> Any:
        return self.round(super().of(drawn))


class LogNormal(Normal):
    """exp(x), x normal with mu and sigma."""

    distribution: Literal["log_normal"] = option("log_normal", "its name")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _representable(self) -> LogNormal:
        if abs(self.mu) + 8 * self.sigma > 700:
            raise ValueError("mu and sigma are of the exponent of e here: smaller numbers")
        return self

    def of(self, drawn: Any) -> Any:
        return math.exp(super().of(drawn))


class RoundedLogNormal(_Rounded, LogNormal):
    """exp(x), x normal, rounded to multiples of q."""

    distribution: Literal["q_log_normal"] = option("q_log_normal", "its name")  # type: ignore[assignment]

    def of(self, drawn: Any) -> Any:
        return self.round(super().of(drawn))


class Beta(Spread):
    """A beta distribution on 0..1."""

    distribution: Literal["beta"] = option("beta", "its name")
    a: float = option(1.0, "first shape", gt=0)
    b: float = option(1.0, "second shape", gt=0)

    def of(self, drawn: Any) -> Any:
        try:
            from scipy.stats import beta
        except ImportError as error:
            raise ConfigError(
                ("parameters", "a beta distribution needs scipy: pip install scipy")
            ) from error
        return float(beta.ppf(drawn, self.a, self.b))


class RoundedBeta(_Rounded, Beta):
    """A beta distribution rounded to multiples of q."""

    distribution: Literal["q_beta"] = option("q_beta", "its name")  # type: ignore[assignment]

    def of(self, drawn: Any) -> Any:
        return self.round(super().of(drawn))


SPREADS: dict[str, type[Spread]] = {
    "constant": Constant,
    "categorical": Categorical,
    "categorical_w_probabilities": Weighted,
    "int_uniform": WholeUniform,
    "uniform": Uniform,
    "q_uniform": RoundedUniform,
    "log_uniform_values": LogUniform,
    "inv_log_uniform_values": LogUniform,
    "q_log_uniform_values": RoundedLogUniform,
    "log_uniform": Exponents,
    "inv_log_uniform": Exponents,
    "q_log_uniform": RoundedExponents,
    "normal": Normal,
    "q_normal": RoundedNormal,
    "log_normal": LogNormal,
    "q_log_normal": RoundedLogNormal,
    "beta": Beta,
    "q_beta": RoundedBeta,
}


def kind_of(values: dict[str, Any]) -> str | None:
    """The distribution that a parameter's keys mean where it names none, as W&B reads them; None:
    they mean none.
    """
    if "values" in values:
        return "categorical_w_probabilities" if "probabilities" in values else "categorical"
    if "value" in values:
        return "constant"
    if "min" in values or "max" in values:
        whole = all(type(values.get(end)) is int for end in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    return None
