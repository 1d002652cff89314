"""Normalisation with a stated policy: whose statistics normalise an activation.

query_batch        the batch in hand (transductive on queries: they see each other); the field's
default since MAML
support            the support set passed as context; the batch in hand where there is none
support_plus_one   the support set and the one query in question (Reptile's non-transductive rows)
running            running averages, leaves of the parameters under "stats."
none               no normalisation
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.kernels.norm_relu_pool import EPS
from metalearn.models.forward_pass import Moments as Moments
from metalearn.models.forward_pass import current
from metalearn.padding import statistics_weight, weighted_moments

Policy = Literal["query_batch", "support", "support_plus_one", "running", "none"]


class Norm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, algorithm 1), statistics by policy.

    Over all axes but the channels.
    """

    mean: Tensor
    var: Tensor
    stated_name = ""  # in the module that it is part of

    def __init__(self, channels: int, policy: Policy, channels_last: bool = False) -> None:
        super().__init__()
        if policy == "none":
            raise ConfigError(("policy", "none normalises nothing: leave the layer Norm out"))
        self.channels_last = channels_last
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.policy = policy
        if policy == "running":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))

    def of_batch(self, rows: int | None, seen: Moments | None) -> bool:
        """Whether `forward` with these arguments does nothing but normalise by the whole batch."""
        rows = current().rows if rows is None else rows
        plain = rows is None and seen is None and statistics_weight() is None
        return self.policy != "running" and plain

    def forward(self, x: Tensor, rows: int | None = None, seen: Moments | None = None) -> Tensor:
        """[B, channels, ...], or [B, ..., channels] -> same.

        Statistics are those of the first `rows` examples, or of all. `seen` collects the
        statistics. Both come from `forward_pass` where they are not given.
        """
        x = x.to(self.weight.dtype)  # of autocast's bfloat16 too, statistics are in float32
        options = current()
        rows = options.rows if rows is None else rows
        if seen is None and options.recorded is not None and self.policy == "running":
            seen = options.recorded.setdefault(self.stated_name, [])
        places = x.dim() - 2
        shape = (1,) * (places + 1) + (-1,) if self.channels_last else (1, -1) + (1,) * places
        if self.policy == "running" and seen is None:
            mean, var = self.mean, self.var
        else:
            axes = tuple(range(places + 1)) if self.channels_last else (0, *range(2, x.dim()))
            given, weight = x if rows is None else x[:rows], statistics_weight()
            if weight is None:
                mean = given.mean(axes)
                var = (given - mean.view(shape)).square().mean(axes)
            else:
                mean, var, _ = weighted_moments(given, weight, -1 if self.channels_last else 1)
            if seen is not None:
                seen.append((mean, var))
        gain = self.weight * torch.rsqrt(var + EPS)
        return x * gain.view(shape) + (self.bias - mean * gain).view(shape)


def batch_normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`Norm` by the whole batch with given parameters: [B, ..., F], [F], [F] -> [B, ..., F]."""
    x, axes = x.to(weight.dtype), tuple(range(x.dim() - 1))
    mean = x.mean(axes)
    gain = weight * torch.rsqrt((x - mean).square().mean(axes) + EPS)
    return x * gain + (bias - mean * gain)
