"""Test functions of optimization as objectives (Moré, Garbow & Hillstrom 1981, ACM TOMS 7(1)): sums
of squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.tasks.quadratics import Point, own_spec
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Own, Params

Residuals = Callable[[Tensor], Tensor]  # z [d] -> r [d]


def rosenbrock(z: Tensor) -> Tensor:
    """Number 21, extended: r = 10 (z_2i - z_2i-1^2) and 1 - z_2i-1; least 0 at (1, ..., 1)."""
    odd, even = z[0::2], z[1::2]
    return torch.stack([10 * (even - odd.square()), 1 - odd], -1).flatten()


def powell(z: Tensor) -> Tensor:
    """Number 22, singular: z_1 + 10 z_2, sqrt5 (z_3 - z_4), (z_2 - 2 z_3)^2, sqrt10 (z_1 - z_4)^2;
    least 0 at 0.
    """
    a, b, c, d = z.reshape(-1, 4).unbind(-1)
    parts = [
        a + 10 * b,
        math.sqrt(5) * (c - d),
        (b - 2 * c).square(),
        math.sqrt(10) * (a - d).square(),
    ]
    return torch.stack(parts, -1).flatten()


def trigonometric(z: Tensor) -> Tensor:
    """Number 26: r_i = d - sum_j cos z_j + i (1 - cos z_i) - sin z_i; least 0, with
    other minima.
    """
    place = torch.arange(1, z.shape[0] + 1, dtype=z.dtype, device=z.device)
    return z.shape[0] - z.cos().sum() + place * (1 - z.cos()) - z.sin()


def broyden(z: Tensor) -> Tensor:
    """Number 30, tridiagonal: r_i = (3 - 2 z_i) z_i - z_i-1 - 2 z_i+1 + 1; least 0."""
    zero = torch.zeros_like(z[:1])
    return (3 - 2 * z) * z - torch.cat([zero, z[:-1]]) - 2 * torch.cat([z[1:], zero]) + 1


FUNCTIONS: dict[
    str, tuple[Residuals, tuple[float, ...]]
] = {  # residuals, and the standard start, repeated
    "rosenbrock": (rosenbrock, (-1.2, 1.0)),
    "powell": (powell, (3.0, -1.0, 0.0, 1.0)),
    "trigonometric": (trigonometric, ()),  # 1 / d throughout
    "broyden": (broyden, (-1.0,)),
}


def standard_start(function: str, dims: int, dtype: torch.dtype) -> Tensor:
    """[d]."""
    repeated = FUNCTIONS[function][1] or (1 / dims,)
    return torch.tensor((repeated * dims)[:dims], dtype=dtype)


class LandscapeSource:
    """f(theta) = |r(z_0 + A theta)|^2 with A a random rotation and scales; task t comes from (key,
    start + t).

    x holds the rows of A and sqrt(d) is part of the residuals: the mean of the squared error is the
    sum of squares. Support and query set are the same.
    """

    data_sha256 = ""

    def __init__(self, options: Landscapes, spec: EpisodeSpec) -> None:
        self.spec = spec
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """x [T, d, d], y [T, d, 1] of zeros; info: key, step."""
        spec, size = self.spec, self._options.dims
        index = torch.arange(start, start + num_tasks, device=spec.device)
        keys = rng.fold_in(key.to(spec.device), spec.split, index)
        reach = math.log(self._options.scales)
        scales = rng.uniform(
            rng.fold_in(keys, "scales"), (size,), -reach, reach, dtype=spec.dtype
        ).exp()
        drawn = rng.normal(rng.fold_in(keys, "rotation"), (size, size), torch.float64)
        turn = (
            torch.linalg.qr(drawn).Q.to(spec.dtype)
            if self._options.rotated
            else torch.eye(size, dtype=spec.dtype)
        )
        x = (turn.to(spec.device) * scales.unsqueeze(-2)).expand(num_tasks, size, size)
        zeros = torch.zeros((num_tasks, size, 1), dtype=spec.dtype, device=spec.device)
        return Episode(Batch(x, zeros), Batch(x, zeros), {"key": keys, "step": zeros[:, 0, 0]})

    def examples(self, key: Key, size: int) -> Batch:
        """The first row of each of `size` fresh tasks: x [B, d], y [B, 1]."""
        batch = self.sample(rng.fold_in(key, "examples"), size).support
        return Batch(batch.x[:, 0], batch.y[:, 0])


class Landscapes(TaskComponent):
    """Test functions that descent finds hard: Rosenbrock's valley and three more, turned and scaled
    at random.

    The start is the standard one of the collection, moved by normal noise of deviation `start`.
    """

    default_model: ClassVar[str] = "own"

    source: Literal["landscapes"] = option("landscapes", "the task source")
    function: Literal["rosenbrock", "powell", "trigonometric", "broyden"] = option(
        "rosenbrock", "the function"
    )
    dims: int = option(
        4, "d, parameters; even for rosenbrock, a multiple of 4 for powell", ge=2, le=1000
    )
    rotated: bool = option(False, "turn the axes of every task at random")
    scales: float = option(
        1.0, "stretch each axis by a factor between 1/scales and scales, log-uniform", ge=1, le=1e4
    )
    start: float = option(0.1, "deviation of the starting point from the standard one", ge=0)

    @model_validator(mode="after")
    def _dims_fit(self) -> Landscapes:
        step = {"rosenbrock": 2, "powell": 4}.get(self.function, 1)
        if self.dims % step:
            raise ValueError(f"dims {self.dims} should be a multiple of {step} for {self.function}")
        return self

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LandscapeSource:
        """A source; splits have the same distribution and different tasks, `seed` changes nothing
        here.
        """
        del seed
        start, (residuals, _) = (
            standard_start(self.function, self.dims, dtype).to(device),
            FUNCTIONS[self.function],
        )
        point, factor = Point(self.dims, self.start, dtype), math.sqrt(self.dims)

        def apply(params: Params, x: Tensor) -> Tensor:
            return factor * residuals(start + x @ params["point"]).unsqueeze(-1)

        return LandscapeSource(
            self, own_spec(split, self.dims, Own(point.init, apply), device, dtype)
        )
