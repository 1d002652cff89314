"""Transformer neural processes (Nguyen & Grover 2022, arXiv:2207.04179, section 3.2, TNP-D)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.in_context.component import InContext, Sizes
from metalearn.in_context.heads_option import check_heads, heads_option
from metalearn.in_context.layers import mlp, mlp_start, weight_bias
from metalearn.in_context.transformer import answer, encode, transformer_start
from metalearn.types import Batch, Key, Params


class TransformerNeuralProcess(InContext):
    """A transformer over support and query tokens; queries attend only to the support set.

    Tokens are (f(x_i), y_i, 0) of the support set and (f(x), 0, 1) of queries; log p(y_1..M | x,
    support) = sum over m of log p(y_m | x_m, support) (TNP-D, section 3.2), which is maximised.
    Invariant to the order of the support set.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.in_context.TransformerNeuralProcess(width=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: the code of a token says whether it is a query; the paper's has zeros for its y
    # alone, which an example with y = 0 has too. Blocks are pre-normalised.
    name: Literal["transformer_neural_process"] = option(
        "transformer_neural_process", "The method."
    )
    width: int = option(64, "Width of the tokens.", acts="train", ge=1, le=4096)
    layers: int = option(3, "Number of blocks of attention and MLP.", acts="train", ge=1, le=64)
    heads: int = heads_option()

    _heads = check_heads()

    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        token = (sizes.features + sizes.labels + 1, self.width, self.width)
        out = (self.width, self.width, sizes.outputs)
        return {
            **mlp_start(rng.fold_in(key, "token"), "token", token, dtype),
            **transformer_start(rng.fold_in(key, "blocks"), self.layers, self.width, dtype),
            **mlp_start(rng.fold_in(key, "out"), "out", out, dtype),
        }

    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> list[Any]:
        x = _tokens(params, z, labels, is_query=False)
        return encode(params, x, self.heads, weight_bias(support.weight), causal=self.causal)

    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        empty = z.new_zeros(z.shape[0], params["token.0.weight"].shape[1] - z.shape[1] - 1)
        x = _tokens(params, z, empty, is_query=True)
        tokens = answer(params, x, memory, self.heads, weight_bias(support.weight))
        return mlp(params, "out", tokens)


def _tokens(params: Params, z: Tensor, labels: Tensor, *, is_query: bool) -> Tensor:
    mark = torch.full_like(z[:, :1], float(is_query))
    return mlp(params, "token", torch.cat([z, labels, mark], -1))
