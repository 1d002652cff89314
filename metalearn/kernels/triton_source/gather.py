"""Triton kernels of gather_conv.py: what stands around a convolution's batched product."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def patches(
    x, taken, rows, B, H, W, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """taken [rows, k k, B Ho Wo] of x [rows, B H W]; zero outside of an image."""
    h = (H + 2 * (SIZE // 2) - SIZE) // STRIDE + 1
    w = (W + 2 * (SIZE // 2) - SIZE) // STRIDE + 1
    n = B * h * w
    blocks = tl.cdiv(n, PLACES)
    row = (tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    output = (tl.program_id(0) % blocks * PLACES + tl.arange(0, PLACES))[None, :]
    there = (row < rows * SIZE * SIZE) & (output < n)
    channel, tap = row // (SIZE * SIZE), (row % (SIZE * SIZE)).to(tl.int32)
    image, inside = output // (h * w), output % (h * w)
    i = inside // w * STRIDE + tap // SIZE - SIZE // 2
    j = inside % w * STRIDE + tap % SIZE - SIZE // 2
    within = there & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    value = tl.load(x + channel * (B * H * W) + image * (H * W) + i * W + j, mask=within, other=0)
    tl.store(taken + row * n + output, value, mask=there)


@triton.jit
def sum_readers(
    parts, to, x, rows, B, H, W, SIZE: tl.constexpr, STRIDE: tl.constexpr, TO: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """x [rows, B H W], the transpose of `patches` applied to parts [rows, k k, B Ho Wo]; added to
    what is there before."""
    h = (H + 2 * (SIZE // 2) - SIZE) // STRIDE + 1
    w = (W + 2 * (SIZE // 2) - SIZE) // STRIDE + 1
    n, places = B * h * w, B * H * W
    blocks = tl.cdiv(places, PLACES)
    row = (tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    place = (tl.program_id(0) % blocks * PLACES + tl.arange(0, PLACES))[None, :]
    there = (row < rows) & (place < places)
    image, inside = place // (H * W), place % (H * W)
    total = tl.zeros([ROWS, PLACES], ACC)
    if TO:
        total += tl.load(to + row * places + place, mask=there, other=0).to(ACC)
    for tap in tl.static_range(SIZE * SIZE):
        up = inside // W + SIZE // 2 - tap // SIZE
        left = inside % W + SIZE // 2 - tap % SIZE
        i, j = up // STRIDE, left // STRIDE
        reads = there & (up >= 0) & (left >= 0) & (up % STRIDE == 0) & (left % STRIDE == 0)
        reads = reads & (i < h) & (j < w)
        at = (row * (SIZE * SIZE) + tap) * n + image * (h * w) + i * w + j
        total += tl.load(parts + at, mask=reads, other=0).to(ACC)
    tl.store(x + row * places + place, total.to(x.dtype.element_ty), mask=there)
