"""The three convolutions of conv.py on CUDA: a gather of patches and one batched product.

    conv         y = w P(x)                 P(x): the C k k patch of every output pixel
    conv_weight  dw = g P(x)^T
    conv_input   dx = S(w^T g)              S: the sum over the outputs that read a pixel

x [G, B, H, W, C], w [Gw, k, k, C, F], y and g [G, B, Ho, Wo, F]; Gw = G, or 1 for weights that all
groups share. In memory the order of results is [G, C, B, H, W] and that of weights torch's, [G, F,
C, k, k]: then neither weights nor their gradients are copied into another order, and a channel of a
task is one row for the normalisation. Where a patch leaves the image it reads a zero that is
appended to the row. The indices are computed once per shape and stay on the device, so that a call
is three or four kernels, never synchronises and can be captured. Products follow torch's precision
flags."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def conv(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """Return y of x and w."""
    size = w.shape[1]
    extents = (length(extent, size, stride) for extent in x.shape[2:4])
    return conv_of_patches(patches(x, size, stride), w, x.shape[1], *extents)


def conv_of_patches(gathered: Tensor, w: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Return y [G, B, Ho, Wo, F] of `patches` and w."""
    return images(torch.bmm(matrices(w, gathered.shape[0]), gathered), batch, height, width)


def conv_input(
    g: Tensor, w: Tensor, stride: int, height: int, width: int, to: Tensor | None = None
) -> Tensor:
    """Return dx of g and w, added to `to`."""
    groups, batch = g.shape[:2]
    size, channels = w.shape[1], w.shape[3]
    parts = torch.bmm(matrices(w, groups).transpose(1, 2), _with_zero(planes(g)))
    taps = readers(batch, height, width, size, stride, str(g.device))
    dx = parts.reshape(groups, channels, -1).index_select(2, taps)
    dx = dx.reshape(groups, channels, -1, batch * height * width).sum(2)
    dx = images(dx, batch, height, width)
    return dx if to is None else dx.add_(to)


def conv_weight(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
    """Return dw of x and g."""
    return conv_weight_of_patches(patches(x, size, stride), g, size)


def conv_weight_of_patches(gathered: Tensor, g: Tensor, size: int) -> Tensor:
    """Return dw [G, k, k, C, F] of `patches` and g."""
    dw = torch.bmm(planes(g), gathered.transpose(1, 2))  # [G, F, C k k]
    return dw.reshape(*dw.shape[:2], -1, size, size).permute(0, 3, 4, 2, 1)


def patches(x: Tensor, size: int, stride: int) -> Tensor:
    """[G, B, H, W, C] -> [G, C k k, B Ho Wo]."""
    groups, batch, height, width, channels = x.shape
    indices = _taps(batch, height, width, size, stride, str(x.device))
    gathered = _with_zero(planes(x)).index_select(2, indices)
    return gathered.reshape(groups, channels * size * size, -1)


def planes(x: Tensor) -> Tensor:
    """[G, B, H, W, C] -> [G, C, B H W], a view where the memory has this order."""
    return x.permute(0, 4, 1, 2, 3).reshape(x.shape[0], x.shape[-1], -1)


def images(x: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Return the inverse of `planes`: [G, C, B H W] -> [G, B, H, W, C], a view."""
    return x.view(*x.shape[:2], batch, height, width).permute(0, 2, 3, 4, 1)


def new_images(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a new tensor [G, B, H, W, C], on CUDA in the order of `images`."""
    if not like.is_cuda:
        return like.new_empty(shape)
    groups, *extents, channels = shape
    return like.new_empty(groups, channels, *extents).permute(0, 2, 3, 4, 1)


def new_weights(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a new tensor [G, k, k, C, F], on CUDA in the order of torch's weights."""
    if not like.is_cuda:
        return like.new_empty(shape)
    groups, rows, columns, channels, filters = shape
    return like.new_empty(groups, filters, channels, rows, columns).permute(0, 3, 4, 2, 1)


def length(extent: int, size: int, stride: int) -> int:
    """Return the number of outputs along an axis, with padding size // 2."""
    return (extent + 2 * (size // 2) - size) // stride + 1


def matrices(w: Tensor, groups: int) -> Tensor:
    """Return weights [Gw, k, k, C, F] as matrices [G, F, C k k]."""
    matrices = w.permute(0, 4, 3, 1, 2).reshape(w.shape[0], w.shape[-1], -1)
    return matrices.expand(groups, -1, -1)


def _with_zero(rows: Tensor) -> Tensor:
    """[G, C, N] -> [G, C, N + 1], with a zero appended."""
    zero = _zero(rows.dtype, str(rows.device))
    return torch.cat([rows, zero.expand(*rows.shape[:2], 1)], 2)


@functools.lru_cache(maxsize=64)
def _zero(dtype: torch.dtype, device: str) -> Tensor:
    return torch.zeros(1, 1, 1, dtype=dtype, device=device)


@functools.lru_cache(maxsize=1024)
def _taps(batch: int, height: int, width: int, size: int, stride: int, device: str) -> Tensor:
    """Return the pixel that tap (a, b) of output (n, i, j) reads, else B H W: [k k B Ho Wo]."""
    row, row_inside = _tap_positions(height, size, stride)  # [k, Ho]
    column, column_inside = _tap_positions(width, size, stride)  # [k, Wo]
    image = torch.arange(batch)[None, None, :, None, None] * height
    index = (image + row[:, None, None, :, None]) * width + column[None, :, None, None, :]
    inside = row_inside[:, None, None, :, None] & column_inside[None, :, None, None, :]
    return torch.where(inside, index, batch * height * width).flatten().int().to(device)


def _tap_positions(extent: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    outputs = torch.arange(length(extent, size, stride))
    position = outputs * stride + torch.arange(size)[:, None] - size // 2
    return position, (position >= 0) & (position < extent)


@functools.lru_cache(maxsize=1024)
def readers(batch: int, height: int, width: int, size: int, stride: int, device: str) -> Tensor:
    """Return the taps and outputs (a, b, n, i, j) that read a pixel: [m m B H W].

    Indices of k k (B Ho Wo + 1), with the zero for none; m is the largest number along an axis."""
    rows, columns = length(height, size, stride), length(width, size, stride)
    none = batch * rows * columns
    row, row_tap, row_reads = _reader_positions(height, size, stride)  # [m, H]
    column, column_tap, column_reads = _reader_positions(width, size, stride)  # [m, W]
    image = torch.arange(batch)[None, None, :, None, None] * rows
    output = (image + row[:, None, None, :, None]) * columns + column[None, :, None, None, :]
    tap = row_tap[:, None, None, :, None] * size + column_tap[None, :, None, None, :]
    reads = row_reads[:, None, None, :, None] & column_reads[None, :, None, None, :]
    return torch.where(reads, tap * (none + 1) + output, none).flatten().int().to(device)


def _reader_positions(extent: int, size: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, tap and whether that output exists, for each pixel: [ceil(k / s), extent]."""
    position = torch.arange(extent) + size // 2
    tap = position % stride + stride * torch.arange(-(-size // stride))[:, None]
    output = torch.div(position - tap, stride, rounding_mode="floor")
    exists = (tap < size) & (output >= 0) & (output < length(extent, size, stride))
    return output, tap, exists
