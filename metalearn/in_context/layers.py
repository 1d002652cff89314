"""Layers of networks that read a support set, as functions of a flat dict of parameters.

H heads; L tokens in a sequence. Attention is written as matrix products, so that every executor
runs it and its FLOPs are counted."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn import rng
from metalearn.types import Key, Params

ABSENT = -1e9  # a score that gives no attention


class Memory(NamedTuple):
    """Keys and values that queries attend to."""

    keys: Tensor  # [B, D]
    values: Tensor  # [B, D]


def linear_start(
    key: Key, name: str, inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = True
) -> Params:
    """Return a linear layer, uniform within 1/sqrt(inputs) as torch's: weight [outputs, inputs]."""
    bound = 1 / math.sqrt(inputs)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    if bias:
        shapes[f"{name}.bias"] = (outputs,)
    return {
        leaf: rng.uniform(rng.fold_in(key, leaf), shape, -bound, bound, dtype=dtype)
        for leaf, shape in shapes.items()
    }


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """Return x W' + b, without b if there is none: [..., inputs] -> [..., outputs]."""
    return F.linear(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def mlp_start(key: Key, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> Params:
    """Return linear layers of these sizes, `name.0`, `name.1`, ..."""
    params: Params = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        params |= linear_start(key, f"{name}.{layer}", inputs, outputs, dtype)
    return params


def mlp(params: Params, name: str, x: Tensor) -> Tensor:
    """Apply linear layers with ReLU between them: [..., inputs] -> [..., outputs]."""
    layer = 0
    while f"{name}.{layer}.weight" in params:
        x = linear(params, f"{name}.{layer}", x.relu() if layer else x)
        layer += 1
    return x


def norm_start(name: str, size: int, dtype: torch.dtype) -> Params:
    """Return the parameters of a layer normalisation: weight 1, bias 0."""
    ones = torch.ones(size, dtype=dtype)
    return {f"{name}.weight": ones, f"{name}.bias": torch.zeros_like(ones)}


def norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Apply layer normalisation over the last axis: [..., D] -> [..., D]."""
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"])


def scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Return q k' / sqrt(D / H) of each head: [M, D], [B, D] -> [H, M, B]."""
    q, k = _by_head(queries, heads), _by_head(keys, heads)
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def read(weights: Tensor, values: Tensor) -> Tensor:
    """Return sums of values weighted by each head: [H, M, B], [B, D] -> [M, D]."""
    sums = weights @ _by_head(values, weights.shape[0])  # [H, M, D/H]
    return sums.transpose(0, 1).flatten(1)


def attend(queries: Tensor, memory: Memory, heads: int, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k' / sqrt(D / H) + bias) v of each head (Vaswani et al. 2017, equation 1).

    [M, D], memory of B, bias that broadcasts to [H, M, B] -> [M, D]."""
    logits = scores(queries, memory.keys, heads)
    logits = logits if bias is None else logits + bias
    return read(logits.softmax(-1), memory.values)


def weight_bias(weight: Tensor | None) -> Tensor | None:
    """Return the bias of scores by which an example counts `weight` times: [B] -> [B]."""
    if weight is None:
        return None
    present = weight > 0
    logs = torch.where(present, weight, torch.ones_like(weight)).log()
    return torch.where(present, logs, torch.full_like(logs, ABSENT))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[L, D] -> [H, L, D/H]."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(0, 1)
    return split
