"""Attentive neural processes (Kim et al. 2019, arXiv:1901.05761, section 3 and figure 2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.in_context.component import InContext, Sizes
from metalearn.in_context.heads_option import check_heads, heads_option
from metalearn.in_context.layers import (
    Memory,
    attend,
    linear,
    linear_start,
    mlp,
    mlp_start,
    weight_bias,
)
from metalearn.types import Batch, Key, Params


class AttentiveNeuralProcess(InContext):
    """A neural process in which each query attends to the support examples.

    r_i = h(f(x_i), y_i), then self-attention among them;  r(x) = attention of f(x) to the f(x_i)
    with values r_i (figure 2, the deterministic path);  outputs = g(f(x), r(x));  loss as of the
    conditional neural process. Invariant to the order of the support set.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.in_context.AttentiveNeuralProcess(width=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: without the latent path, whose likelihood is a bound and no number of one forward
    # pass. Keys and queries of the cross-attention are linear in f(x), as multi-head attention has
    # them.
    name: Literal["attentive_neural_process"] = option("attentive_neural_process", "The method.")
    width: int = option(64, "Width of h, r and g.", acts="train", ge=1, le=4096)
    heads: int = heads_option()

    _heads = check_heads()

    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        width, params = self.width, Params()
        encoder = (sizes.features + sizes.labels, width, width)
        decoder = (sizes.features + width, width, width, sizes.outputs)
        params |= mlp_start(rng.fold_in(key, "encoder"), "encoder", encoder, dtype)
        params |= mlp_start(rng.fold_in(key, "decoder"), "decoder", decoder, dtype)
        for part, size in (("self", width), ("cross", sizes.features)):
            for role in ("query", "key"):
                name = f"{part}.{role}"
                params |= linear_start(key, name, size, width, dtype, bias=role == "query")
            params |= linear_start(key, f"{part}.value", width, width, dtype)
            params |= linear_start(key, f"{part}.out", width, width, dtype)
        return params

    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> Memory:
        r = mlp(params, "encoder", torch.cat([z, labels], -1))  # [B, D]
        memory = Memory(linear(params, "self.key", r), linear(params, "self.value", r))
        bias = weight_bias(support.weight)
        attended = attend(linear(params, "self.query", r), memory, self.heads, bias)
        r = r + linear(params, "self.out", attended)
        return Memory(linear(params, "cross.key", z), linear(params, "cross.value", r))

    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        bias = weight_bias(support.weight)
        attended = attend(linear(params, "cross.query", z), memory, self.heads, bias)
        return mlp(params, "decoder", torch.cat([z, linear(params, "cross.out", attended)], -1))
