"""Quadratic functions, the first objectives of learned optimizers (Andrychowicz et al. 2016,
section 3.1).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.tasks.images import split_problem
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Own, Params

CONDITIONED = "conditioned"


class QuadraticSource:
    """f(theta) = |W theta - y|^2; every draw of task t comes from (key, start + t).

    A task's examples are the rows of sqrt(d) W and sqrt(d) y: the mean over d rows of the squared
    error is then the sum of squares. Support and query set are the same.
    """

    data_sha256 = ""

    def __init__(self, options: Quadratics, spec: EpisodeSpec) -> None:
        self.spec = spec
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """x [T, d, d], y [T, d, 1]; info: key, step, dims [T] (how many of the d directions the
        task has).
        """
        spec, size = self.spec, self._options.dims
        index = torch.arange(start, start + num_tasks, device=spec.device)
        keys = rng.fold_in(key.to(spec.device), spec.split, index)
        weights, y = self._drawn(keys)
        low = self._options.dims_min or size
        dims = low + rng.integers(rng.fold_in(keys, "dims"), (), size - low + 1)  # [T]
        there = (torch.arange(size, device=spec.device) < dims.unsqueeze(-1)).to(
            spec.dtype
        )  # [T, d]
        factor = math.sqrt(size)
        x = factor * weights * there.unsqueeze(-1) * there.unsqueeze(-2)
        batch = Batch(x, factor * (y * there).unsqueeze(-1))
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=spec.device)
        return Episode(batch, batch, {"key": keys, "step": step, "dims": dims.to(spec.dtype)})

    def examples(self, key: Key, size: int) -> Batch:
        """The first row of each of `size` fresh tasks: x [B, d], y [B, 1]."""
        batch = self.sample(rng.fold_in(key, "examples"), size).support
        return Batch(batch.x[:, 0], batch.y[:, 0])

    def _drawn(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """W [T, d, d] and y [T, d]."""
        options, dtype = self._options, self.spec.dtype
        size = options.dims
        draw = rng.uniform if options.draws == "uniform" else rng.normal
        weights = draw(rng.fold_in(keys, "W"), (size, size), dtype=dtype)
        y = draw(rng.fold_in(keys, "y"), (size,), dtype=dtype)
        if options.draws == CONDITIONED:
            weights = self._conditioned(keys, weights)
        return weights, y

    def _conditioned(self, keys: Tensor, weights: Tensor) -> Tensor:
        """diag(s) Q: Q orthogonal, s from 1 to condition^(-1/2), both ends taken, so that W^T W has
        `condition`.
        """
        rotation: Tensor = torch.linalg.qr(weights.double()).Q.to(weights.dtype)
        size = self._options.dims
        inside = rng.uniform(rng.fold_in(keys, "spectrum"), (size,), dtype=weights.dtype)  # [T, d]
        place = torch.arange(size, device=weights.device)
        exponent = torch.where(place == 0, 0.0, torch.where(place == size - 1, 1.0, inside))
        scales = (-0.5 * math.log(self._options.condition) * exponent).exp()
        turned: Tensor = scales.unsqueeze(-1) * rotation
        return turned


class Quadratics(TaskComponent):
    """Quadratics |W theta - y|^2 in d dimensions, as in the 2016 paper on learned optimizers, or
    ill-conditioned.

    `uniform`: W and y uniform on [0, 1), as the authors' code draws them (the paper says normal);
    `normal`: both standard normal; `conditioned`: a random rotation, curvatures spread over
    `condition`, y standard normal. The start is normal with deviation `start`, 0.01 in the authors'
    code."""

    default_model: ClassVar[str] = "own"

    source: Literal["quadratics"] = option("quadratics", "the task source")
    dims: int = option(10, "d, of a function", ge=2, le=1000)
    dims_min: int | None = option(
        None,
        "tasks of different sizes: between so many and `dims` directions, the others are zero",
        ge=1,
    )
    draws: Literal["uniform", "normal", "conditioned"] = option("uniform", "how W and y are drawn")
    condition: float = option(1e4, "largest over smallest curvature of `conditioned`", ge=1)
    start: float = option(0.01, "deviation of the starting point", ge=0)

    @model_validator(mode="after")
    def _sizes(self) -> Quadratics:
        if self.dims_min is not None and self.dims_min > self.dims:
            raise ValueError(f"dims_min {self.dims_min} should be at most dims {self.dims}")
        return self

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> QuadraticSource:
        """A source; splits have the same distribution and different functions, `seed` changes
        nothing here.
        """
        del seed
        return QuadraticSource(
            self, own_spec(split, self.dims, Point(self.dims, self.start, dtype).own, device, dtype)
        )


def own_spec(split: str, rows: int, own: Own, device: str, dtype: torch.dtype) -> EpisodeSpec:
    """The spec of an objective of d parameters with d residuals, all of which are in the support
    set.
    """
    if problems := split_problem(split):
        raise ConfigError(*problems)
    return EpisodeSpec(
        kind="regression",
        ways=1,
        shots=rows,
        queries=rows,
        x_shape=(rows,),
        outputs=1,
        num_classes=0,
        split=split,
        dtype=dtype,
        device=device,
        own=own,
    )


class Point:
    """One parameter, a point theta [d], normal with deviation `start`; residuals x theta."""

    def __init__(self, dims: int, start: float, dtype: torch.dtype) -> None:
        self.dims, self.start, self.dtype = dims, start, dtype
        self.own = Own(self.init, self.apply)

    def init(self, key: Key) -> Params:
        return {"point": self.start * rng.normal(key, (self.dims,), self.dtype)}

    def apply(self, params: Params, x: Tensor) -> Tensor:
        """x [B, d] -> [B, 1]."""
        residuals: Tensor = x @ params["point"]
        return residuals.unsqueeze(-1)
