"""CAML, context-aware meta-learning (Fifty et al. 2024, arXiv:2310.10971, sections 3 and 4)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.in_context.component import InContext, Sizes
from metalearn.in_context.heads_option import check_heads, heads_option
from metalearn.in_context.layers import (
    Memory,
    linear,
    linear_start,
    mlp,
    mlp_start,
    norm,
    norm_start,
    read,
    scores,
    weight_bias,
)
from metalearn.inner.requirements import require_classes
from metalearn.padding import class_mask_of
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Method, Params


class CAML(InContext):
    """Attention over features and label codes, equivariant to permutations of the classes.

    Codes of the classes form an equal-length maximally equiangular set (section 4): c_n =
    sqrt(N / (N - 1)) (e_n - 1/N), <c_n, c_m> = -1/(N - 1); a query's is 0. In each block an
    example attends with scores q k' / sqrt(D / H) + b_h <c_i, c_j>; the values that it reads are
    added to features, and g_h times the codes that it reads are added to codes. logits = scale *
    the query's code.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.in_context.CAML(width=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: codes pass the blocks by inner products and weighted sums alone, where the paper's
    # transformer mixes features and codes: permuted classes give permuted outputs exactly, not
    # after training, and the number of ways may differ between training and test.
    fixed_labels: ClassVar[bool] = False
    name: Literal["caml"] = option("caml", "The method.")
    width: int = option(64, "Width of the feature tokens.", acts="train", ge=1, le=4096)
    layers: int = option(2, "Number of blocks of attention and MLP.", acts="train", ge=1, le=64)
    heads: int = heads_option()

    _heads = check_heads()

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)
        return super().build(learner, spec, meta_steps)

    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        width, ones = self.width, torch.ones((), dtype=dtype)
        params = self.token_start(rng.fold_in(key, "token"), sizes.features, dtype)
        params["scale"] = 8 * ones
        for layer in range(self.layers):
            layer_key, name = rng.fold_in(key, "layer", layer), f"layers.{layer}"
            last = layer + 1 == self.layers  # whose features have no reader
            params |= norm_start(f"{name}.before", width, dtype)
            for part in ("query", "key") if last else ("query", "key", "value", "out"):
                bias = part != "key"
                params |= linear_start(layer_key, f"{name}.{part}", width, width, dtype, bias=bias)
            params[f"{name}.gain"] = torch.full((self.heads, 1, 1), 1 / self.heads, dtype=dtype)
            if not last:
                params |= norm_start(f"{name}.between", width, dtype)
                params |= mlp_start(layer_key, f"{name}.mlp", (width, 2 * width, width), dtype)
            if layer > 0 or not last:
                params[f"{name}.agreement"] = 0.5 * ones.expand(self.heads, 1, 1)
        return params

    def token_start(self, key: Key, features: int, dtype: torch.dtype) -> Params:
        """The parameters of `token`."""
        return linear_start(key, "token", features, self.width, dtype)

    def token(self, params: Params, z: Tensor) -> Tensor:
        """Tokens of features: [B, D] -> [B, width]."""
        return linear(params, "token", z)

    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> list[Any]:
        x, bias = self.token(params, z), weight_bias(support.weight)
        codes = class_codes(labels, class_mask_of(support, labels.shape[-1]))
        memories: list[Any] = []
        for layer in range(self.layers):
            h, memory = self._memory(params, layer, x)
            memories.append((memory, codes))
            if layer + 1 < self.layers:
                x, codes = self._block(params, layer, x, h, codes, memories[-1], bias)
        return memories

    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        codes = z.new_zeros(z.shape[0], memory[0][1].shape[-1])
        return self.answer_from(params, memory, z, codes, support)

    def answer_from(
        self, params: Params, memory: Any, z: Tensor, codes: Tensor, support: Batch
    ) -> Tensor:
        """Logits [M, N] of queries whose codes begin as `codes` [M, N]."""
        x, bias = self.token(params, z), weight_bias(support.weight)
        for layer, layer_memory in enumerate(memory):
            h = norm(params, f"layers.{layer}.before", x)
            x, codes = self._block(params, layer, x, h, codes, layer_memory, bias)
        return params["scale"] * codes

    def _memory(self, params: Params, layer: int, x: Tensor) -> tuple[Tensor, Memory]:
        name = f"layers.{layer}"
        h = norm(params, f"{name}.before", x)
        keys, last = linear(params, f"{name}.key", h), layer + 1 == self.layers
        return h, Memory(keys, keys if last else linear(params, f"{name}.value", h))

    def _block(
        self,
        params: Params,
        layer: int,
        x: Tensor,
        h: Tensor,
        codes: Tensor,
        layer_memory: tuple[Memory, Tensor],
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Features [L, D] and codes [L, N] after one block."""
        memory, support_codes = layer_memory
        name = f"layers.{layer}"
        score = scores(linear(params, f"{name}.query", h), memory.keys, self.heads)  # [H, L, B]
        if f"{name}.agreement" in params:
            score = score + params[f"{name}.agreement"] * (codes @ support_codes.T)
        score = score if bias is None else score + bias
        weights = score.softmax(-1)
        codes = codes + ((params[f"{name}.gain"] * weights).sum(0)) @ support_codes
        if layer + 1 < self.layers:
            x = x + linear(params, f"{name}.out", read(weights, memory.values))
            x = x + mlp(params, f"{name}.mlp", norm(params, f"{name}.between", x))
        return x, codes


def class_codes(labels: Tensor, present: Tensor | None) -> Tensor:
    """ELMES of the classes that are present [N], default all: one-hot or p [B, N] -> [B, N]."""
    present = labels.new_ones(labels.shape[-1]) if present is None else present.to(labels.dtype)
    count = present.sum()
    length = (count / (count - 1).clamp(min=1)).sqrt()
    return length * (labels - present / count)
