"""Initial parameters of torch's layers as functions of a key."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.models.norm import Norm
from metalearn.types import Key

Scheme = Literal["uniform", "uniform_fan_out", "truncated_normal", "xavier"]
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
AFFINE = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, Norm)


def truncated_normal(key: Key, shape: tuple[int, ...], std: float, dtype: torch.dtype) -> Tensor:
    """Sample a normal of standard deviation `std`, truncated at two of them, by the inverse CDF."""
    edge = 0.5 * (1 + math.erf(-2 / math.sqrt(2)))
    u = rng.uniform(key, shape, edge, 1 - edge, dtype=torch.float64)
    return (std * math.sqrt(2) * torch.erfinv(2 * u - 1)).to(dtype)


def weighted(
    key: Key,
    name: str,
    layer: nn.Module,
    shape: tuple[int, ...],
    scheme: Scheme,
    dtype: torch.dtype,
) -> Tensor:
    """Return the initial value of one tensor of a linear or convolutional layer.

    uniform: within 1/sqrt(fan in), weight and bias, as torch's layers; uniform_fan_out: within
    1/sqrt(fan out), as MAML in the code of CAVIA; xavier (Glorot & Bengio 2010, equation 16):
    within sqrt(6 / (fan in + fan out)), bias zero; truncated_normal: standard deviation 0.01, bias
    zero."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    kernel_size = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * kernel_size, weight.shape[0] * kernel_size
    is_bias = name.endswith("bias")
    if is_bias and scheme in ("truncated_normal", "xavier"):
        return torch.zeros(shape, dtype=dtype)
    if scheme == "truncated_normal":
        return truncated_normal(key, shape, 0.01, dtype)
    fan = fan_out if scheme == "uniform_fan_out" else fan_in
    bound = math.sqrt(6 / (fan_in + fan_out)) if scheme == "xavier" else 1 / math.sqrt(fan)
    return rng.uniform(key, shape, -bound, bound, dtype=dtype)


def start(
    key: Key,
    name: str,
    owner: nn.Module,
    shape: tuple[int, ...],
    scheme: Scheme,
    dtype: torch.dtype,
) -> Tensor:
    """Return the initial value of the parameter `name` of the layer `owner`."""
    key = rng.fold_in(key, name)
    leaf = name.rsplit(".", 1)[-1]
    if isinstance(owner, WEIGHTED):
        return weighted(key, name, owner, shape, scheme, dtype)
    if isinstance(owner, AFFINE):
        return (
            torch.ones(shape, dtype=dtype) if leaf == "weight" else torch.zeros(shape, dtype=dtype)
        )
    if isinstance(owner, nn.Embedding):
        return rng.normal(key, shape, dtype=dtype)
    text = f"no known initialization for a parameter of {type(owner).__name__}"
    raise ConfigError((name, f"{text}: pass init=, a function (key, name, shape, dtype) -> tensor"))
