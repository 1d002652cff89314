"""The three convolutions of conv.py on CUDA: a gather of patches and one batched product.

    conv         y = P(x) w                 P(x): the k k patch of every output place
    conv_weight  dw = P(x)^T g
    conv_input   dx = S(g w^T)              S: the sum over the outputs that read a place

x [G, B, H, W, C], w [Gw, k, k, C, F], y and g [G, B, Ho, Wo, F]; Gw = G, or 1 for weights that all
groups share, which make one wide product. Where a patch leaves the image it reads a row of zeros
that is put behind it. The places are made once for each shape and stay on the device, so that a
call is three or four kernels, waits for nothing and can be captured. Products follow torch's
precision flags."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def conv(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """y of x and w."""
    groups, batch, height, width, _ = x.shape
    size, filters = w.shape[1], w.shape[-1]
    flat = w.reshape(w.shape[0], -1, filters)
    if w.shape[0] == 1:  # one wide product
        y = torch.mm(_patches(x, size, stride).flatten(0, 1), flat[0])
    else:
        y = torch.bmm(_patches(x, size, stride), flat)
    return y.reshape(
        groups, batch, length(height, size, stride), length(width, size, stride), filters
    )


def conv_input(g: Tensor, w: Tensor, stride: int, height: int, width: int) -> Tensor:
    """dx of g and w."""
    groups, batch, rows, columns, filters = g.shape
    size, channels = w.shape[1], w.shape[3]
    flat = w.reshape(w.shape[0], -1, filters).transpose(1, 2)
    if w.shape[0] == 1:
        parts = torch.mm(g.reshape(-1, filters), flat[0])
    else:
        parts = torch.bmm(g.reshape(groups, -1, filters), flat)
    readers = _readers(height, width, size, stride, str(g.device))
    parts = parts.reshape(groups * batch, rows * columns * size * size, channels)
    found = _with_zeros(parts).index_select(1, readers)
    return found.reshape(groups, batch, height, width, -1, channels).sum(4)


def conv_weight(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
    """dw of x and g."""
    groups, channels, filters = x.shape[0], x.shape[-1], g.shape[-1]
    patches = _patches(x, size, stride).transpose(1, 2)
    return torch.bmm(patches, g.reshape(groups, -1, filters)).reshape(
        groups, size, size, channels, filters
    )


def length(extent: int, size: int, stride: int) -> int:
    """Output places along an axis: padding size // 2."""
    return (extent + 2 * (size // 2) - size) // stride + 1


def _patches(x: Tensor, size: int, stride: int) -> Tensor:
    """[G, B, H, W, C] -> [G, B Ho Wo, k k C]."""
    groups, batch, height, width, channels = x.shape
    read = _taps(height, width, size, stride, str(x.device))
    rows = _with_zeros(x.reshape(groups * batch, height * width, channels))
    return rows.index_select(1, read).reshape(groups, -1, size * size * channels)


def _with_zeros(rows: Tensor) -> Tensor:
    """[N, P, C] -> [N, P + 1, C], zeros behind."""
    zeros = _zeros(rows.shape[-1], rows.dtype, str(rows.device))
    return torch.cat([rows, zeros.expand(rows.shape[0], -1, -1)], 1)


@functools.lru_cache(maxsize=1024)
def _zeros(channels: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.zeros(1, 1, channels, dtype=dtype, device=device)


@functools.lru_cache(maxsize=1024)
def _taps(height: int, width: int, size: int, stride: int, device: str) -> Tensor:
    """The place that tap (a, b) of output (i, j) reads, H W outside: [Ho Wo k k]."""
    rows, row_inside = _tap_places(height, size, stride)  # [Ho, k]
    columns, column_inside = _tap_places(width, size, stride)  # [Wo, k]
    place = rows[:, None, :, None] * width + columns[None, :, None, :]
    inside = row_inside[:, None, :, None] & column_inside[None, :, None, :]
    return torch.where(inside, place, height * width).flatten().to(device)


def _tap_places(extent: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    outputs = torch.arange(length(extent, size, stride))
    place = outputs[:, None] * stride + torch.arange(size) - size // 2
    return place, (place >= 0) & (place < extent)


@functools.lru_cache(maxsize=1024)
def _readers(height: int, width: int, size: int, stride: int, device: str) -> Tensor:
    """The outputs and taps (i, j, a, b) that read a place, Ho Wo k k for none: [H W n n] with n the
    most along an axis.
    """
    columns = length(width, size, stride)
    none = length(height, size, stride) * columns * size * size
    row, row_tap, row_reads = _reader_places(height, size, stride)  # [H, n]
    column, column_tap, column_reads = _reader_places(width, size, stride)  # [W, n]
    output = row[:, None, :, None] * columns + column[None, :, None, :]
    tap = row_tap[:, None, :, None] * size + column_tap[None, :, None, :]
    reads = row_reads[:, None, :, None] & column_reads[None, :, None, :]
    return torch.where(reads, output * size * size + tap, none).flatten().to(device)


def _reader_places(extent: int, size: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output, tap and whether there is such an output, of each place: [extent, ceil(k / s)]."""
    place = torch.arange(extent)[:, None] + size // 2
    tap = place % stride + stride * torch.arange(-(-size // stride))
    output = torch.div(place - tap, stride, rounding_mode="floor")
    there = (tap < size) & (output >= 0) & (output < length(extent, size, stride))
    return output, tap, there


def register(library: torch.library.Library) -> None:
    """As the operators' kernels on CUDA."""
    for operator in (conv, conv_input, conv_weight):
        library.impl(operator.__name__, operator, "CUDA")
