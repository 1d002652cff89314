"""Conditional neural processes (Garnelo et al. 2018, arXiv:1807.01613, equations 1 to 4)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.in_context.component import InContext, Sizes
from metalearn.in_context.layers import mlp, mlp_start
from metalearn.types import Batch, Key, Params


class ConditionalNeuralProcess(InContext):
    """Encode each example, average the encodings, and decode the average with each query.

    r_i = h(f(x_i), y_i) (equation 1);  r = mean of r_i (2);  outputs = g(f(x), r) (3);  minimise
    the mean of -log p(y | x, support) over queries (4): of a normal distribution for targets, of
    classes for labels. Invariant to the order of the support set. h and g are MLPs, f is the
    model.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.in_context.ConditionalNeuralProcess(width=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    name: Literal["conditional_neural_process"] = option(
        "conditional_neural_process", "The method."
    )
    width: int = option(64, "Width of h, r and g.", acts="train", ge=1, le=4096)

    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        width = self.width
        encoder = (sizes.features + sizes.labels, width, width)
        decoder = (sizes.features + width, width, width, sizes.outputs)
        return {
            **mlp_start(rng.fold_in(key, "encoder"), "encoder", encoder, dtype),
            **mlp_start(rng.fold_in(key, "decoder"), "decoder", decoder, dtype),
        }

    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> Tensor:
        r = mlp(params, "encoder", torch.cat([z, labels], -1))  # [B, D]
        if support.weight is None:
            return r.mean(0)
        return (support.weight.unsqueeze(-1) * r).sum(0) / support.weight.sum()

    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        r = memory.expand(z.shape[0], -1)
        return mlp(params, "decoder", torch.cat([z, r], -1))
