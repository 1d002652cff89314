"""The gathers of gather_conv.py as one Triton kernel each (triton_source/gather.py).

A convolution is then `patches` and a batched product, its gradient for the input a product and
`sum_readers`. gather_conv.py, which has the same functions, is the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.kernels.gather_conv import (
    conv_of_patches,
    conv_weight_of_patches,
    images,
    length,
    matrices,
    planes,
)
from metalearn.kernels.launch import accumulator, launch, tile


def conv(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """Return y of x and w."""
    size = w.shape[1]
    extents = (length(extent, size, stride) for extent in x.shape[2:4])
    return conv_of_patches(patches(x, size, stride), w, x.shape[1], *extents)


def conv_input(
    g: Tensor, w: Tensor, stride: int, height: int, width: int, to: Tensor | None = None
) -> Tensor:
    """Return dx of g and w, added to `to`."""
    parts = torch.bmm(matrices(w, g.shape[0]).transpose(1, 2), planes(g))
    return sum_readers(parts, w.shape[1], stride, g.shape[1], height, width, to)


def conv_weight(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
    """Return dw of x and g."""
    return conv_weight_of_patches(patches(x, size, stride), g, size)


def patches(x: Tensor, size: int, stride: int) -> Tensor:
    """[G, B, H, W, C] -> [G, C k k, B Ho Wo]."""
    groups, batch, height, width, channels = x.shape
    columns = batch * length(height, size, stride) * length(width, size, stride)
    gathered = x.new_empty(groups, channels * size * size, columns)
    programs, block_rows, block_width = tile(groups * channels * size * size, columns)
    launch(
        "gather.patches",
        programs * -(-columns // block_width),
        [planes(x).contiguous(), gathered],
        groups * channels,
        batch,
        height,
        width,
        SIZE=size,
        STRIDE=stride,
        ROWS=block_rows,
        PLACES=block_width,
    )
    return gathered


def sum_readers(
    parts: Tensor,
    size: int,
    stride: int,
    batch: int,
    height: int,
    width: int,
    to: Tensor | None = None,
) -> Tensor:
    """[G, C k k, B Ho Wo] -> [G, B, H, W, C]: the sum over the outputs that read a pixel, added to
    `to`."""
    groups, channels = parts.shape[0], parts.shape[1] // size**2
    pixels = batch * height * width
    x = parts.new_empty(groups, channels, pixels)
    programs, block_rows, block_width = tile(groups * channels, pixels)
    launch(
        "gather.sum_readers",
        programs * -(-pixels // block_width),
        [parts.contiguous(), x if to is None else planes(to).contiguous(), x],
        groups * channels,
        batch,
        height,
        width,
        SIZE=size,
        STRIDE=stride,
        TO=to is not None,
        ACC=accumulator(parts.dtype),
        ROWS=block_rows,
        PLACES=block_width,
    )
    return images(x, batch, height, width)
