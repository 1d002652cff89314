"""Quadratic functions, the first objectives of learned optimizers (Andrychowicz et al. 2016)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.tasks.generated import GeneratedSource, GeneratedTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Objective, Params


class QuadraticSource(GeneratedSource):
    """f(theta) = |W theta - y|^2.

    A task's examples are the rows of sqrt(d) W and sqrt(d) y: the mean over d rows of the squared
    error is then the sum of squares. Support and query set are the same."""

    def __init__(self, options: Quadratics, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """x [T, d, d], y [T, d, 1]; info [T]: key, step, dims (directions that are not zero)."""
        spec, size = self.spec, self._options.dims
        keys = self.keys(key, num_tasks, start)
        weights, y = self._sample_problem(keys)
        low = self._options.dims_min or size
        dims = low + rng.integers(rng.fold_in(keys, "dims"), (), size - low + 1)  # [T]
        is_used = torch.arange(size, device=spec.device) < dims.unsqueeze(-1)
        mask, factor = is_used.to(spec.dtype), math.sqrt(size)  # [T, d]
        x = factor * weights * mask.unsqueeze(-1) * mask.unsqueeze(-2)
        batch = Batch(x, factor * (y * mask).unsqueeze(-1))
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=spec.device)
        return Episode(batch, batch, {"key": keys, "step": step, "dims": dims.to(spec.dtype)})

    def _sample_problem(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return W [T, d, d] and y [T, d]."""
        options, dtype = self._options, self.spec.dtype
        size = options.dims
        draw = rng.uniform if options.draws == "uniform" else rng.normal
        weights = draw(rng.fold_in(keys, "W"), (size, size), dtype=dtype)
        y = draw(rng.fold_in(keys, "y"), (size,), dtype=dtype)
        if options.draws == "conditioned":
            weights = self._condition(keys, weights)
        return weights, y

    def _condition(self, keys: Tensor, weights: Tensor) -> Tensor:
        """Return diag(s) Q with Q orthogonal and s from 1 to condition^(-1/2), both ends included.

        W^T W then has condition number `condition`."""
        rotation: Tensor = torch.linalg.qr(weights.double()).Q.to(weights.dtype)
        size = self._options.dims
        inside = rng.uniform(rng.fold_in(keys, "spectrum"), (size,), dtype=weights.dtype)  # [T, d]
        index = torch.arange(size, device=weights.device)
        exponent = torch.where(index == 0, 0.0, torch.where(index == size - 1, 1.0, inside))
        scales = (-0.5 * math.log(self._options.condition) * exponent).exp()
        scaled: Tensor = scales.unsqueeze(-1) * rotation
        return scaled


class Quadratics(GeneratedTask):
    """Quadratics |W theta - y|^2 in d dimensions, as in Andrychowicz et al., or ill-conditioned.

    `uniform`: W and y uniform on [0, 1), as the authors' code draws them (section 3.1 says normal);
    `normal`: both standard normal; `conditioned`: a random rotation, curvatures spread over
    `condition`, y standard normal. The start is normal with standard deviation `start`, 0.01 in the
    authors' code.

    >>> source = ml.tasks.Quadratics(dims=10).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 10, 10])
    """

    default_model: ClassVar[str] = "own"

    source: Literal["quadratics"] = option("quadratics", "The task source.")
    dims: int = option(10, "d, number of parameters.", ge=2, le=1000)
    dims_min: int | None = option(
        None,
        "Minimum number of directions of a task, for tasks of different sizes (the others "
        "are zero); null: `dims`.",
        ge=1,
    )
    draws: Literal["uniform", "normal", "conditioned"] = option(
        "uniform", "Distribution of W and y."
    )
    condition: float = option(
        1e4, "Ratio of the largest to the smallest curvature of `conditioned`.", ge=1
    )
    start: float = option(0.01, "Standard deviation of the initial point.", ge=0)

    @model_validator(mode="after")
    def _check_dims(self) -> Quadratics:
        if self.dims_min is not None and self.dims_min > self.dims:
            raise ValueError(f"dims_min must be <= dims {self.dims} (got {self.dims_min})")
        return self

    def source_of(self, **where: Any) -> QuadraticSource:
        point = Point(self.dims, self.start, where["dtype"])
        objective = Objective(point.init, point.apply)
        return QuadraticSource(self, point_spec(self.dims, objective, **where))


def point_spec(dims: int, objective: Objective, **where: Any) -> EpisodeSpec:
    """Return the spec of an objective of d parameters with d residuals, all in the support set."""
    return EpisodeSpec(
        kind="regression",
        ways=1,
        shots=dims,
        queries=dims,
        x_shape=(dims,),
        outputs=1,
        num_classes=0,
        objective=objective,
        **where,
    )


class Point:
    """A parameter theta [d], normal with standard deviation `start`; residuals x theta."""

    def __init__(self, dims: int, start: float, dtype: torch.dtype) -> None:
        self.dims, self.start, self.dtype = dims, start, dtype

    def init(self, key: Key) -> Params:
        return {"point": self.start * rng.normal(key, (self.dims,), self.dtype)}

    def apply(self, params: Params, x: Tensor) -> Tensor:
        """x [B, d] -> [B, 1]."""
        residuals: Tensor = x @ params["point"]
        return residuals.unsqueeze(-1)
