"""What an architecture is made of, channels last."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.kernels import conv, native
from metalearn.kernels.norm_relu_pool import EPS
from metalearn.models.norm import Moments, Norm, Policy


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """Cross-correlation, padding k // 2: x [B, H, W, C], weight [F, C, k, k] as torch's -> [B, Ho,
    Wo, F].

    A step that is recorded (run/traced.py) takes the kernel of models/conv.py: with the 16 filters
    of a cell and tasks with weights of their own it made MAML's meta-step 1.7 times as fast. A
    search trains each cell for a few steps, one call after another, and there torch's convolution
    is the faster: its calls under vmap cost 0.2 ms less."""
    if _recorded() and not torch.is_autocast_enabled(
        x.device.type
    ):  # which has a say in torch's alone
        return conv.conv2d(x, weight, bias, stride)
    size = weight.shape[-1]
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, size // 2).permute(0, 2, 3, 1)


def _recorded() -> bool:
    """Whether what runs is being written down, by make_fx; a module that nobody has imported
    records nothing.

    Not by torch.compile and torch.export: what they make for others should need no operators of
    this project."""
    if torch.compiler.is_compiling():
        return False
    recorder = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return recorder is not None and recorder.get_proxy_mode() is not None


def half(x: Tensor) -> Tensor:
    """Every second place, from the first: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return x[:, ::2, ::2]


def avg3(x: Tensor, stride: int = 1) -> Tensor:
    """Mean of each 3 x 3 window, of the places inside the map alone: [B, H, W, C] -> [B, Ho, Wo,
    C].
    """
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
    """(x - mean) / sqrt(var + eps) over all axes but the first (Ba et al. 2016, equation 4), then
    weight and bias.

    x [B, ..., C]; `mask` [C] says which channels exist: the moments are over those alone, the
    others come out as zero."""
    axes = tuple(range(1, x.dim()))
    if mask is None:
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        return (x - mean) * torch.rsqrt(var + EPS) * weight + bias
    here = mask.expand(x.shape[1:])
    many = here.sum()
    mean = (x * here).sum(axes, keepdim=True) / many
    var = ((x - mean).square() * here).sum(axes, keepdim=True) / many
    return ((x - mean) * torch.rsqrt(var + EPS) * weight + bias) * mask


class ConvNorm(nn.Module):
    """A convolution, then the policy's normalisation."""

    def __init__(self, inputs: int, filters: int, size: int, stride: int, norm: Policy) -> None:
        super().__init__()
        native.kernel()  # built here, once, and not inside a compiled step
        self.stride = stride
        self.conv = nn.Conv2d(inputs, filters, size, stride=stride, padding=size // 2)
        self.norm = Norm(filters, norm, channels_last=True) if norm != "none" else None

    def forward(self, x: Tensor, rows: int | None = None, seen: Moments | None = None) -> Tensor:
        """[B, H, W, C] -> [B, Ho, Wo, F]."""
        assert self.conv.bias is not None
        z = conv2d(x, self.conv.weight, self.conv.bias, self.stride)
        return z if self.norm is None else self.norm(z, rows, seen)


class Masks(nn.Module):
    """The masks of a supernet, one buffer [words] for each place; their values come with the
    parameters.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size))

    def of(self, name: str) -> Tensor:
        """[words]."""
        mask: Tensor = getattr(self, name)
        return mask
