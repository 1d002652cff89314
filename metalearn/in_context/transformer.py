"""A transformer that encodes a support set once; queries attend to the memory of each layer.

Support tokens attend to each other, a query token to the support tokens: no token attends to a
query, so that the memory of a layer is that of the support set alone and serves any query."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn import rng
from metalearn.in_context.layers import (
    ABSENT,
    Memory,
    attend,
    linear,
    linear_start,
    mlp,
    mlp_start,
    norm,
    norm_start,
)
from metalearn.types import Key, Params


def transformer_start(key: Key, layers: int, width: int, dtype: torch.dtype) -> Params:
    """Return parameters of `layers` blocks of attention and an MLP (pre-normalised)."""
    params: Params = {}
    for layer in range(layers):
        name, layer_key = f"layers.{layer}", rng.fold_in(key, "layer", layer)
        params |= norm_start(f"{name}.before", width, dtype)
        # A key's bias adds the same to all scores of a query, which softmax ignores.
        for part in ("query", "key", "value", "out"):
            bias = part not in ("key",)
            params |= linear_start(layer_key, f"{name}.{part}", width, width, dtype, bias=bias)
        params |= norm_start(f"{name}.between", width, dtype)
        params |= mlp_start(layer_key, f"{name}.mlp", (width, 2 * width, width), dtype)
    return params | norm_start("last", width, dtype)


def depth(params: Params) -> int:
    """Return the number of blocks."""
    return len({name.split(".")[1] for name in params if name.startswith("layers.")})


def encode(
    params: Params, x: Tensor, heads: int, bias: Tensor | None = None, *, causal: bool = False
) -> list[Memory]:
    """Return the memory of each block for queries, from support tokens [B, D].

    bias [B] is added to the scores of each token. `causal`: a token attends to those before it and
    itself."""
    if causal:
        later = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
        mask = torch.zeros_like(later, dtype=x.dtype).masked_fill(later, ABSENT)
        bias = mask if bias is None else mask + bias
    memories: list[Memory] = []
    for layer in range(depth(params)):
        name = f"layers.{layer}"
        z = norm(params, f"{name}.before", x)
        memories.append(
            Memory(linear(params, f"{name}.key", z), linear(params, f"{name}.value", z))
        )
        if layer + 1 < depth(params):  # nothing reads the output of the last block
            x = _block(params, name, x, z, memories[-1], heads, bias)
    return memories


def answer(
    params: Params, x: Tensor, memories: list[Memory], heads: int, bias: Tensor | None = None
) -> Tensor:
    """Return query tokens after all blocks: [M, D] -> [M, D]; bias as in `encode`."""
    for layer, memory in enumerate(memories):
        name = f"layers.{layer}"
        x = _block(params, name, x, norm(params, f"{name}.before", x), memory, heads, bias)
    return norm(params, "last", x)


def _block(
    params: Params,
    name: str,
    x: Tensor,
    z: Tensor,
    memory: Memory,
    heads: int,
    bias: Tensor | None,
) -> Tensor:
    attended = attend(linear(params, f"{name}.query", z), memory, heads, bias)
    x = x + linear(params, f"{name}.out", attended)
    return x + mlp(params, f"{name}.mlp", norm(params, f"{name}.between", x))
