"""Inputs of learned networks: features of a gradient, a parameter and the time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TIMES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)


def log_sign(grad: Tensor, p: float) -> Tensor:
    """(log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g): [n] -> [n, 2].

    Andrychowicz et al. 2016, appendix A."""
    magnitude = grad.abs()
    is_large = magnitude >= math.exp(-p)
    first = torch.where(is_large, torch.where(is_large, magnitude, 1.0).log() / p, -1.0)
    second = torch.where(is_large, grad.sign(), math.exp(p) * grad)
    return torch.stack([first, second], -1)


def time_features(step: Tensor) -> Tensor:
    """tanh(step / t - 1) at 11 scales t (Metz et al. 2022, arXiv:2203.11860): [] -> [11]."""
    return torch.tanh(step / constants(TIMES, step) - 1)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return [len(values)], filled on the device: a CUDA graph cannot record a copy to it."""
    return torch.cat([like.new_full((1,), value) for value in values])


def divide_by_rms(columns: Sequence[Tensor]) -> Tensor:
    """Divide each feature of a tensor by its root mean square over the tensor: [n, F]."""
    table = torch.stack([column.reshape(-1) for column in columns], -1)
    return table * (table.square().mean(0) + 1e-5).rsqrt()


def moving_averages(old: Tensor, new: Tensor, decays: Tensor) -> Tensor:
    """Return moving averages with several decays: old [k, *X], new [*X], decays [k] -> [k, *X]."""
    decay = decays.reshape(-1, *[1] * new.dim())
    return decay * old + (1 - decay) * new


def log_size(value: Tensor) -> Tensor:
    """log of a non-negative number, of any size: [*] -> [*], 0 at 1, about -11 at 0."""
    return (value + 1.5e-5).log()


def scaled_update(output: Tensor, step_size: float, exponent: float) -> Tensor:
    """-step_size * d * e^(exponent * s) of a network's output (d, s): [n, 2] -> [n]."""
    direction, size = output.unbind(-1)
    return -step_size * direction * (exponent * size).exp()
