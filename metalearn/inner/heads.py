"""Heads: what turns features into outputs, with and without parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn import rng
from metalearn.losses import one_hot
from metalearn.scopes.counting import is_counted
from metalearn.types import Batch, Key, Params

WEIGHT, BIAS = "head.weight", "head.bias"
LARGE = 1 << 22  # numbers in a table of differences; beyond it squares are expanded


def is_head(name: str) -> bool:
    return name.startswith("head.")


def linear(head: Params, z: Tensor) -> Tensor:
    """z W' + b, without b where the head has none: [B, D] -> [B, C]."""
    return F.linear(z, head[WEIGHT], head.get(BIAS))


def fresh_linear(key: Key, outputs: int, like: Tensor) -> Params:
    """A new linear head for features [*, D] like `like`, uniform within 1/sqrt(D)."""
    bound = 1 / math.sqrt(like.shape[-1])
    weight = rng.uniform(
        rng.fold_in(key, WEIGHT), (outputs, like.shape[-1]), -bound, bound, dtype=like.dtype
    )
    return {
        WEIGHT: weight,
        BIAS: rng.uniform(rng.fold_in(key, BIAS), (outputs,), -bound, bound, dtype=like.dtype),
    }


def unit(z: Tensor) -> Tensor:
    """z / |z| along the last axis; a zero vector stays zero."""
    return z * torch.rsqrt(z.square().sum(-1, keepdim=True) + 1e-12)


def identity(z: Tensor) -> Tensor:
    return z


def cosine(head: Params, z: Tensor, temperature: float) -> Tensor:
    """temperature * cos(z, w_c) (Chen et al. 2019, section 3.2), without bias: [B, D] -> [B, C]."""
    return temperature * unit(z) @ unit(head[WEIGHT]).T


def class_means(z: Tensor, y: Tensor, ways: int, weight: Tensor | None = None) -> Tensor:
    """Mean feature of each class (Snell et al. 2017, equation 1): [B, D], [B] -> [N, D].

    Examples are weighted by `weight` [B]; there the mean of a class without examples is 0."""
    member = one_hot(y, ways, z.dtype)
    if weight is None:
        return member.T @ z / member.sum(0).unsqueeze(-1)
    member = member * weight.unsqueeze(-1)
    total = member.sum(0).unsqueeze(-1)
    return member.T @ z / torch.where(total > 0, total, torch.ones_like(total))


def imprinted(z: Tensor, support: Batch, ways: int, scale: float = 10.0) -> Params:
    """A linear head that starts at the class means (Qi, Brown & Lowe 2018, section 3.2).

    w_n = scale * c_n / (|c_n| m),  b = 0,  c_n the mean feature of class n, m the mean of |z| over
    the support set [B, D]: where all features have one length, the logits are scale * cos(z, c_n).
    Classes without examples start at 0."""
    lengths = z.square().sum(-1).sqrt()
    weight = torch.ones_like(lengths) if support.weight is None else support.weight
    mean = (weight * lengths).sum() / weight.sum()
    centres = class_means(z, support.y, ways, support.weight)
    return {WEIGHT: scale / mean * unit(centres), BIAS: torch.zeros_like(centres[:, 0])}


def negative_squared_distance(z: Tensor, centres: Tensor) -> Tensor:
    """-|z - c|^2 (Snell et al. 2017, equation 2): [B, D], [N, D] -> [B, N].

    Its cost is that of the matrix product, in both forms: 2 B N D FLOPs, and as many for the
    gradient in z and for that in c."""
    any_size = torch.compiler.is_exporting() or is_counted()
    if not any_size and z.shape[0] * centres.numel() <= LARGE:
        return -(z.unsqueeze(-2) - centres).square().sum(-1)
    # Of many ways the differences [B, N, D] are too many to keep. Around a common centre the
    # squares that cancel are small.
    middle = centres.mean(0)
    z, centres = z - middle, centres - middle
    return 2 * z @ centres.T - z.square().sum(-1, keepdim=True) - centres.square().sum(-1)
