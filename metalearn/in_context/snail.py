"""SNAIL, temporal convolutions and attention (Mishra et al. 2018, arXiv:1707.03141, section 3)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.in_context.component import InContext, Sizes
from metalearn.in_context.layers import ABSENT, Memory, attend, linear, linear_start
from metalearn.inner.requirements import require_classes
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Method, Params


class SNAIL(InContext):
    """Dilated causal convolutions and causal attention over the sequence of examples.

    dense block of dilation d: x -> [x, tanh(u_f) * sigmoid(u_g)], u = W_0 x[t - d] + W_1 x[t] + b;
    TC block: dense blocks of dilations 1, 2, 4, ... up to `span`; attention block: x -> [x,
    softmax(q k' / sqrt(D)) v] over the tokens up to t (section 3). Tokens are (f(x_i), y_i), the
    last one (f(x), 0) is the query, whose class the network predicts. The order of the support
    set, which is drawn for each episode, is part of the input.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.in_context.SNAIL(width=8).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures: one width for all blocks, where the paper's grow with the size of its tasks, and
    # a `span` of the options instead of the length of the sequence, so that a network fits tasks
    # of other shots. Examples of weight 0 precede the sequence, where the paper has zeros.
    causal: ClassVar[bool] = True
    name: Literal["snail"] = option("snail", "The method.")
    width: int = option(32, "Filters of a dense block, and width of attention.", acts="train", ge=1)
    span: int = option(
        32,
        "Number of previous examples in the receptive field of the convolutions.",
        acts="train",
        ge=2,
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)
        return super().build(learner, spec, meta_steps)

    @property
    def blocks(self) -> list[int]:
        """Attention (0) and dense blocks (their dilation), from first to last."""
        dilations = [2**power for power in range(max(1, (self.span - 1).bit_length()))]
        return [0, *dilations, 0, *dilations, 0]

    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        params, size = Params(), sizes.features + sizes.labels
        for number, dilation in enumerate(self.blocks):
            block_key, name = rng.fold_in(key, "block", number), f"blocks.{number}"
            if dilation:
                params |= linear_start(block_key, f"{name}.filter", 2 * size, self.width, dtype)
                params |= linear_start(block_key, f"{name}.gate", 2 * size, self.width, dtype)
            else:
                for part in ("query", "key", "value"):
                    bias = part != "key"
                    layer = f"{name}.{part}"
                    params |= linear_start(block_key, layer, size, self.width, dtype, bias=bias)
            size += self.width
        return params | linear_start(rng.fold_in(key, "out"), "out", size, sizes.outputs, dtype)

    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> list[Any]:
        x, count = torch.cat([z, labels], -1), z.shape[0]
        present = torch.ones_like(x[:, 0]) if support.weight is None else support.weight > 0
        present = present.to(x.dtype)
        if support.weight is not None:  # examples of weight 0 first
            x, present = _in_order(x, present), present.sort(stable=True).values
        later = torch.ones(count, count, dtype=torch.bool, device=x.device).triu(1)
        mask = torch.zeros_like(later, dtype=x.dtype).masked_fill(later, ABSENT)
        absent = (1 - present) * ABSENT
        memories: list[Any] = []
        for number, dilation in enumerate(self.blocks):
            x = x * present.unsqueeze(-1)
            if dilation:
                shifted = torch.cat([torch.zeros_like(x[:dilation]), x])[:count]
                memories.append(x[count - dilation] if dilation <= count else x[0] * 0)
                x = _dense(params, number, x, shifted)
            else:
                memories.append((_memory(params, number, x), absent))
                query = linear(params, f"blocks.{number}.query", x)
                attended = attend(query, memories[-1][0], 1, mask + absent)
                x = torch.cat([x, attended], -1)
        return memories

    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        labels = params["blocks.0.query.weight"].shape[1] - z.shape[1]
        x = torch.cat([z, z.new_zeros(z.shape[0], labels)], -1)
        for number, (dilation, block_memory) in enumerate(zip(self.blocks, memory, strict=True)):
            if dilation:
                x = _dense(params, number, x, block_memory.expand_as(x))
            else:
                x = torch.cat([x, _with_itself(params, number, x, *block_memory)], -1)
        return linear(params, "out", x)


def _dense(params: Params, number: int, x: Tensor, shifted: Tensor) -> Tensor:
    """Return [x, gated]: x [L, D] and x shifted by one dilation, [L, D] -> [L, D + width]."""
    pairs = torch.cat([shifted, x], -1)
    name = f"blocks.{number}"
    gated = linear(params, f"{name}.filter", pairs).tanh()
    return torch.cat([x, gated * linear(params, f"{name}.gate", pairs).sigmoid()], -1)


def _memory(params: Params, number: int, x: Tensor) -> Memory:
    name = f"blocks.{number}"
    return Memory(linear(params, f"{name}.key", x), linear(params, f"{name}.value", x))


def _with_itself(params: Params, number: int, x: Tensor, support: Memory, bias: Tensor) -> Tensor:
    """Return attention of each query [M, D] to the support set and to itself: [M, width]."""
    own_memory, query = _memory(params, number, x), linear(params, f"blocks.{number}.query", x)
    scale = query.shape[-1] ** -0.5
    to_support = scale * query @ support.keys.T + bias  # [M, B]
    to_itself = scale * (query * own_memory.keys).sum(-1, keepdim=True)  # [M, 1]
    weights = torch.cat([to_support, to_itself], -1).softmax(-1)
    return weights[:, :-1] @ support.values + weights[:, -1:] * own_memory.values


def _in_order(x: Tensor, present: Tensor) -> Tensor:
    """Return rows [B, D], those whose `present` [B] is 0 first, in their order otherwise."""
    order = present.sort(stable=True).indices
    return x.gather(0, order.unsqueeze(-1).expand_as(x))
