"""The metric of a sweep, and its values in a run directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from metalearn.component import Component, option
from metalearn.errors import did_you_mean
from metalearn.storage.files import read_lines

METRICS = ("valid/loss", "valid/accuracy", "test/loss", "test/accuracy")


class Metric(Component):
    """The metric that a sweep optimizes."""

    name: str = option(
        ..., "valid/loss or valid/accuracy (at the best validation), test/loss or test/accuracy."
    )
    goal: Literal["minimize", "maximize"] = option("minimize", "Direction of the optimisation.")
    target: float | None = option(None, "Start no new trial once one has reached this value.")
    impute: Literal["worst"] = option("worst", "Value of a failed trial.")

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, data: Any) -> Any:
        """`loss` and valid.loss are valid/loss."""
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            name = data["name"].replace(".", "/")
            data = {**data, "name": f"valid/{name}" if name in ("loss", "accuracy") else name}
        return data

    @model_validator(mode="after")
    def _known(self) -> Metric:
        if self.name not in METRICS:
            raise ValueError(f"unknown metric {self.name!r}; {did_you_mean(self.name, METRICS)}")
        best = "minimize" if self.quantity == "loss" else "maximize"
        if self.goal != best:
            size = "small" if self.quantity == "loss" else "large"
            raise ValueError(f"{self.name} is better when {size}: use goal: {best}")
        return self

    @property
    def split(self) -> str:
        return self.name.partition("/")[0]

    @property
    def quantity(self) -> str:
        return self.name.partition("/")[2]

    @property
    def sign(self) -> float:
        """Factor by which a value is multiplied so that smaller is better."""
        return 1.0 if self.goal == "minimize" else -1.0


def default_metric(validates: bool) -> Metric:
    """Return the metric of a file without one, as grid and random search allow in W&B's schema."""
    return Metric(name="valid/loss" if validates else "test/loss")


def validations(metrics: Path, metric: Metric) -> list[float]:
    """Return the metric at every validation so far; NaN where it is not finite."""
    rows = [row for row in read_lines(metrics) if row.get("kind") == row.get("split") == "valid"]
    values = [row.get(metric.quantity) for row in rows]
    return [math.nan if value is None else float(value) for value in values]


def value_of(folder: Path, result: dict[str, Any], metric: Metric) -> float:
    """Return the metric of a finished run: at its best validation, or in the test.

    With checkpoint: last it is that of the last validation."""
    if metric.split == "test":
        steps, step = result["test"]["steps"], result["headline"]["step"]
        value = (result["test"][metric.quantity] or [])[steps.index(step)]
        return math.nan if value is None else float(value)
    values = validations(folder / "metrics.jsonl", metric)
    if result["checkpoint"] == "last":
        return values[-1] if values else math.nan
    finite = [metric.sign * value for value in values if math.isfinite(value)]
    return metric.sign * min(finite) if finite else math.nan
