"""Test functions of optimization as objectives: sums of squares of residuals.

Moré, Garbow & Hillstrom 1981, ACM TOMS 7(1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.tasks.generated import GeneratedSource, GeneratedTask
from metalearn.tasks.quadratics import Point, point_spec
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Objective, Params


def rosenbrock(z: Tensor) -> Tensor:
    """Number 21, extended: r = 10 (z_2i - z_2i-1^2) and 1 - z_2i-1; minimum 0 at (1, ..., 1)."""
    odd, even = z[0::2], z[1::2]
    return torch.stack([10 * (even - odd.square()), 1 - odd], -1).flatten()


def powell(z: Tensor) -> Tensor:
    """Number 22, singular; minimum 0 at 0.

    r = z_1 + 10 z_2, sqrt5 (z_3 - z_4), (z_2 - 2 z_3)^2, sqrt10 (z_1 - z_4)^2"""
    a, b, c, d = z.reshape(-1, 4).unbind(-1)
    slow = (b - 2 * c).square(), math.sqrt(10) * (a - d).square()
    return torch.stack([a + 10 * b, math.sqrt(5) * (c - d), *slow], -1).flatten()


def trigonometric(z: Tensor) -> Tensor:
    """Number 26: r_i = d - sum_j cos z_j + i (1 - cos z_i) - sin z_i; minimum 0, and others."""
    index = torch.arange(1, z.shape[0] + 1, dtype=z.dtype, device=z.device)
    return z.shape[0] - z.cos().sum() + index * (1 - z.cos()) - z.sin()


def broyden(z: Tensor) -> Tensor:
    """Number 30, tridiagonal: r_i = (3 - 2 z_i) z_i - z_i-1 - 2 z_i+1 + 1; minimum 0."""
    zero = torch.zeros_like(z[:1])
    return (3 - 2 * z) * z - torch.cat([zero, z[:-1]]) - 2 * torch.cat([z[1:], zero]) + 1


class Function(NamedTuple):
    """A test function."""

    residuals: Callable[[Tensor], Tensor]  # z [d] -> r [d]
    start: tuple[float, ...]  # the standard initial point, repeated; (): 1 / d throughout
    multiple: int = 1  # of which d is a multiple


FUNCTIONS = {
    "rosenbrock": Function(rosenbrock, (-1.2, 1.0), 2),
    "powell": Function(powell, (3.0, -1.0, 0.0, 1.0), 4),
    "trigonometric": Function(trigonometric, ()),
    "broyden": Function(broyden, (-1.0,)),
}


def standard_start(function: str, dims: int, dtype: torch.dtype) -> Tensor:
    """Return the standard initial point of a test function: [d]."""
    repeated = FUNCTIONS[function].start or (1 / dims,)
    return torch.tensor((repeated * dims)[:dims], dtype=dtype)


class LandscapeSource(GeneratedSource):
    """f(theta) = |r(z_0 + A theta)|^2 with A a random rotation and scales.

    x holds the rows of A and sqrt(d) is part of the residuals: the mean of the squared error is the
    sum of squares. Support and query set are the same."""

    def __init__(self, options: Landscapes, spec: EpisodeSpec) -> None:
        super().__init__(spec)
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """x [T, d, d], y [T, d, 1] of zeros; info [T]: key, step."""
        spec, size = self.spec, self._options.dims
        keys, reach = self.keys(key, num_tasks, start), math.log(self._options.scales)
        logs = rng.uniform(rng.fold_in(keys, "scales"), (size,), -reach, reach, dtype=spec.dtype)
        rotation = torch.eye(size, dtype=spec.dtype, device=spec.device)
        if self._options.rotated:
            gaussian = rng.normal(rng.fold_in(keys, "rotation"), (size, size), torch.float64)
            rotation = torch.linalg.qr(gaussian).Q.to(spec.dtype)
        x = (rotation * logs.exp().unsqueeze(-2)).expand(num_tasks, size, size)
        zeros = torch.zeros((num_tasks, size, 1), dtype=spec.dtype, device=spec.device)
        return Episode(Batch(x, zeros), Batch(x, zeros), {"key": keys, "step": zeros[:, 0, 0]})


class Landscapes(GeneratedTask):
    """Test functions that are hard for gradient descent, such as Rosenbrock's, rotated and scaled.

    The initial point is the standard one plus normal noise with standard deviation `start`.

    >>> source = ml.tasks.Landscapes().build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 4, 4])
    """

    default_model: ClassVar[str] = "own"

    source: Literal["landscapes"] = option("landscapes", "The task source.")
    function: Literal["rosenbrock", "powell", "trigonometric", "broyden"] = option(
        "rosenbrock", "The test function."
    )
    dims: int = option(
        4,
        "d, number of parameters; even for rosenbrock, a multiple of 4 for powell.",
        ge=2,
        le=1000,
    )
    rotated: bool = option(False, "Rotate the axes of every task at random.")
    scales: float = option(
        1.0, "Maximum factor by which an axis is stretched or shrunk, log-uniform.", ge=1, le=1e4
    )
    start: float = option(
        0.1, "Standard deviation of the initial point around the standard one.", ge=0
    )

    @model_validator(mode="after")
    def _check_dims(self) -> Landscapes:
        multiple = FUNCTIONS[self.function].multiple
        if self.dims % multiple:
            text = f"dims must be a multiple of {multiple} for {self.function} (got {self.dims})"
            raise ValueError(text)
        return self

    def source_of(self, **where: Any) -> LandscapeSource:
        start = standard_start(self.function, self.dims, where["dtype"]).to(where["device"])
        residuals, factor = FUNCTIONS[self.function].residuals, math.sqrt(self.dims)

        def apply(params: Params, x: Tensor) -> Tensor:
            return factor * residuals(start + x @ params["point"]).unsqueeze(-1)

        objective = Objective(Point(self.dims, self.start, where["dtype"]).init, apply)
        return LandscapeSource(self, point_spec(self.dims, objective, **where))
