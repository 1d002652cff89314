"""Operations of architectures, channels last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.kernels import conv, native
from metalearn.kernels.norm_relu_pool import EPS
from metalearn.models.norm import Norm, Policy
from metalearn.nas.spaces.space import Place
from metalearn.scopes.recording import is_recorded


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """Cross-correlation with padding k // 2: x [B, H, W, C] -> [B, Ho, Wo, F].

    weight [F, C, k, k] as torch's, bias [F]. A traced step (executors/trace.py) takes the operator
    of kernels/conv.py: with the 16 filters of a cell and different weights for each task it made
    MAML's meta-step 1.7 times as fast. A search runs each cell for a few steps without tracing, and
    there torch's convolution is faster: its calls under vmap cost 0.2 ms less. Autocast acts on
    torch's operators alone, so it takes torch's too."""
    if is_recorded() and not torch.is_autocast_enabled(x.device.type):
        return conv.conv2d(x, weight, bias, stride)
    size = weight.shape[-1]
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, size // 2).permute(0, 2, 3, 1)


def half(x: Tensor) -> Tensor:
    """Take every second pixel, from the first: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return x[:, ::2, ::2]


def avg3(x: Tensor, stride: int = 1) -> Tensor:
    """Average each 3 x 3 window, without padding pixels: [B, H, W, C] -> [B, Ho, Wo, C]."""
    return _window_sum(x, stride) / _window_sum(x.new_ones((1, *x.shape[1:3], 1)), stride)


def _window_sum(x: Tensor, stride: int) -> Tensor:
    for axis in (1, 2):
        out = (x.shape[axis] - 1) // stride + 1
        padded = F.pad(x, (0, 0, 1, 1) if axis == 2 else (0, 0, 0, 0, 1, 1))
        last = (out - 1) * stride + 1
        parts = [padded.narrow(axis, start, last) for start in range(3)]
        step = (slice(None),) * axis + (slice(None, None, stride),)
        x = parts[0][step] + parts[1][step] + parts[2][step]
    return x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016, equation 4): x [B, ..., C].

    Moments are over all axes but the first. `mask` [C] marks the channels that exist: the moments
    are over those alone, and the others are zero in the output."""
    axes = tuple(range(1, x.dim()))
    if mask is None:
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        return (x - mean) * torch.rsqrt(var + EPS) * weight + bias
    exists = mask.expand(x.shape[1:])
    count = exists.sum()
    mean = (x * exists).sum(axes, keepdim=True) / count
    var = ((x - mean).square() * exists).sum(axes, keepdim=True) / count
    return ((x - mean) * torch.rsqrt(var + EPS) * weight + bias) * mask


def width_mask(weights: Tensor, widths: Sequence[int], like: Tensor) -> Tensor:
    """Return the mask of the widest layer's units: weights [W] of the widths -> [max(widths)]."""
    units = torch.arange(widths[-1], device=like.device)
    # compared with numbers: a tensor of the widths would be copied from the host in every pass
    exists = torch.stack([units < width for width in widths])
    return weights @ exists.to(like.dtype)


class ConvNorm(nn.Module):
    """A convolution, then normalisation by policy."""

    def __init__(self, inputs: int, filters: int, size: int, stride: int, norm: Policy) -> None:
        super().__init__()
        native.kernel()  # compiles the operators here, once, and not inside a compiled step
        self.stride = stride
        self.conv = nn.Conv2d(inputs, filters, size, stride=stride, padding=size // 2)
        self.norm = Norm(filters, norm, channels_last=True) if norm != "none" else None

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        """[B, H, W, C] -> [B, Ho, Wo, F]."""
        assert self.conv.bias is not None
        z = conv2d(x, self.conv.weight, self.conv.bias, self.stride)
        return z if self.norm is None else self.norm(z, rows)


class Masks(nn.Module):
    """The masks of a supernet: one buffer [choices] for each place, set with the parameters."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__()
        for place in places:
            self.register_buffer(place.name, torch.zeros(len(place.choices)))

    def of(self, name: str) -> Tensor:
        """Return the mask [choices] of a place."""
        mask: Tensor = getattr(self, name)
        return mask
