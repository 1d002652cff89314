"""torch's attention layers by operators that have a vmap and a second derivative.

With the same parameter names, instead of its fused kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mask = Tensor | None  # bool: True is left out; numbers are added to the scores


class UnfusedAttention(nn.MultiheadAttention):
    """`forward` of nn.MultiheadAttention (Vaswani et al. 2017, equation 1)."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Mask = None,
        need_weights: bool = True,
        attn_mask: Mask = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[L, B, E], [S, B, *] -> outputs and, where needed, weights, as torch's.

        [B, L, E] with batch_first, [L, E] unbatched."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal needs attn_mask")
        batched = query.dim() == 3
        turn = batched and not self.batch_first
        parts = [z if batched else z.unsqueeze(0) for z in (query, key, value)]
        q, k, v = self._projected([z.transpose(0, 1) if turn else z for z in parts])
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        more = k.shape[2] - (key.shape[0] if turn or not batched else key.shape[1])
        scores = q / math.sqrt(self.head_dim) @ k.transpose(-2, -1)  # [B, H, L, S]
        masks = (_by_heads(attn_mask, scores), _by_examples(key_padding_mask))
        for mask in masks:
            scores = masked(scores, None if mask is None else F.pad(mask, (0, more)))
        # torch's gives NaN for a row of which all is left out where weights are asked for, else 0
        safe = not need_weights and any(mask is not None for mask in masks)
        weights = safe_softmax(scores) if safe else torch.softmax(scores, -1)
        weights = F.dropout(weights, self.dropout, self.training)
        z = (weights @ v).transpose(1, 2).flatten(2)
        out = F.linear(z, self.out_proj.weight, self.out_proj.bias)
        weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            out, weights = out.squeeze(0), weights.squeeze(0)
        return out.transpose(0, 1) if turn else out, weights if need_weights else None

    def _projected(self, parts: list[Tensor]) -> list[Tensor]:
        """Queries, keys and values, bias and zero rows included: [B, L, *] -> [B, H, L, E / H]."""
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        rows = [F.linear(*part) for part in zip(parts, weights, biases, strict=True)]
        for place, extra in ((1, self.bias_k), (2, self.bias_v)):
            if extra is not None:
                end = extra.expand(rows[place].shape[0], -1, -1)
                rows[place] = torch.cat([rows[place], end], 1)
        if self.add_zero_attn:
            rows[1:] = [F.pad(row, (0, 0, 0, 1)) for row in rows[1:]]
        return [row.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for row in rows]


class UnfusedEncoderLayer(nn.TransformerEncoderLayer):
    """`forward` of nn.TransformerEncoderLayer without its fused kernel."""

    def forward(
        self,
        src: Tensor,
        src_mask: Mask = None,
        src_key_padding_mask: Mask = None,
        is_causal: bool = False,
    ) -> Tensor:
        """[L, B, E] ([B, L, E] with batch_first) -> same."""
        masks = src_mask, src_key_padding_mask, is_causal
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks))
        return self.norm2(x + self._ff_block(x))  # type: ignore[no-any-return]


def masked(scores: Tensor, mask: Mask, left_out: bool = True) -> Tensor:
    """Return scores under a mask; in a mask of bools, entries equal to `left_out` are excluded."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(mask if left_out else ~mask, -math.inf)
    return scores + mask


def safe_softmax(scores: Tensor) -> Tensor:
    """softmax over the last axis, 0 in rows of which all is left out: [..., S] -> same."""
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)


def _by_heads(mask: Mask, scores: Tensor) -> Mask:
    """[L, S] or [B * H, L, S] -> [B, H, L, S]."""
    if mask is None or mask.dim() == 2:
        return mask
    return mask.view(*scores.shape[:2], *mask.shape[1:])


def _by_examples(mask: Mask) -> Mask:
    """[B, S] -> [B, 1, 1, S]."""
    return None if mask is None else mask[:, None, None]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Mask = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention: [..., L, D] -> [..., L, E]; here True in a mask is let in."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(times, -3) for part in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query * factor @ key.transpose(-2, -1)
    if is_causal:
        shape = scores.shape[-2:]
        attn_mask = torch.ones(shape, dtype=torch.bool, device=scores.device).tril()
    scores = masked(scores, attn_mask, left_out=False)
    weights = torch.softmax(scores, -1) if attn_mask is None else safe_softmax(scores)
    weights = F.dropout(weights, dropout_p) if dropout_p else weights
    return weights @ value
