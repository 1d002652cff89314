"""Normalisation with a stated policy: whose statistics normalise an activation.

query_batch        the current batch (transductive on queries: they see each other); the field's
default since MAML
support            the support set passed as context; the current batch if there is none
support_plus_one   the support set and the one query in question (Reptile's non-transductive rows)
running            the current batch in training steps, which update running averages (leaves of the
parameters under "stats."); those averages on new tasks
none               no normalisation"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.kernels.norm_relu_pool import EPS
from metalearn.models.forward_pass import statistics_rows
from metalearn.padding import statistics_weight, weighted_moments
from metalearn.scopes.running_statistics import is_training, record_batch

Policy = Literal["query_batch", "support", "support_plus_one", "running", "none"]
# Of the fields `norm`.
RUNNING = "running: batch statistics in training and inner steps, running averages on new tasks."
MOMENTUM = 0.1  # weight of a new batch in the running statistics, as torch's batch norm


class Norm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, algorithm 1), statistics by policy.

    Over all axes but the channels."""

    mean: Tensor
    var: Tensor
    stated_name = ""  # in the module that it is part of

    def __init__(self, channels: int, policy: Policy, channels_last: bool = False) -> None:
        super().__init__()
        if policy == "none":
            raise ConfigError(("policy", "none does not normalise: omit the layer Norm"))
        self.channels_last = channels_last
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.policy = policy
        if policy == "running":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))

    def of_batch(self, rows: int | None) -> bool:
        """Whether `forward` with these arguments normalises by the whole batch."""
        rows = statistics_rows() if rows is None else rows
        plain = rows is None and statistics_weight() is None
        return plain and (self.policy != "running" or is_training())

    def move_averages(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        """Move the running averages by a batch of `count` numbers: mean, biased variance [F]."""
        one_less = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
        record_batch(self.stated_name, {"mean": mean, "var": var * (count / one_less)}, MOMENTUM)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        """[B, channels, ...], or [B, ..., channels] -> same.

        Statistics are those of the first `rows` examples, or of all; from `forward_pass` where
        `rows` is not given."""
        x = x.to(self.weight.dtype)  # of autocast's bfloat16 too, statistics are in float32
        rows = statistics_rows() if rows is None else rows
        places = x.dim() - 2
        shape = (1,) * (places + 1) + (-1,) if self.channels_last else (1, -1) + (1,) * places
        if self.policy == "running" and not is_training():
            mean, var = self.mean, self.var
        else:
            axes = tuple(range(places + 1)) if self.channels_last else (0, *range(2, x.dim()))
            given, weight = x if rows is None else x[:rows], statistics_weight()
            count: Tensor | int = given.numel() // self.weight.shape[0]
            if weight is None:
                mean = given.mean(axes)
                var = (given - mean.view(shape)).square().mean(axes)
            else:
                channel = -1 if self.channels_last else 1
                mean, var, count = weighted_moments(given, weight, channel)
            if self.policy == "running":
                self.move_averages(mean, var, count)
        gain = self.weight * torch.rsqrt(var + EPS)
        return x * gain.view(shape) + (self.bias - mean * gain).view(shape)


def batch_normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply `Norm` with statistics of the whole batch: [B, ..., F], [F], [F] -> [B, ..., F]."""
    x, axes = x.to(weight.dtype), tuple(range(x.dim() - 1))
    mean = x.mean(axes)
    gain = weight * torch.rsqrt((x - mean).square().mean(axes) + EPS)
    return x * gain + (bias - mean * gain)
