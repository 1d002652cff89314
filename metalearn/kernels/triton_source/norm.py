"""Triton kernels of norm_relu_pool.py's three operators: formulas as in norm_relu_pool.cpp.

A row is a channel of a task, its B H W places contiguous. A program takes ROWS rows: it reads them
for the sums and again for the result, so that each operator is one launch. Places outside of every
window (odd H or W) count in the statistics alone. ACC is the type of sums."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows_of(rows, places, ROWS: tl.constexpr):
    """(row numbers [ROWS], which of them exist, the first place of each [ROWS, 1])."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return row, row < rows, row.to(tl.int64)[:, None] * places


@triton.jit
def _read_row(array, row, exists, F, stride, ACC: tl.constexpr):
    """A number for each row [ROWS, 1] of an array [G, F] whose groups lie `stride` apart."""
    at = (row // F).to(tl.int64) * stride + row % F
    return tl.load(array + at, mask=exists, other=0).to(ACC)[:, None]


@triton.jit
def _read(array, at, there, ACC: tl.constexpr):
    return tl.load(array + at, mask=there, other=0).to(ACC)


@triton.jit
def _write(array, at, there, value):
    tl.store(array + at, value.to(array.dtype.element_ty), mask=there)


@triton.jit
def _chosen(y, corner, there, mean, scale, gain, bias, W, WINDOW: tl.constexpr, ACC: tl.constexpr):
    """(place from the corner, x, z) of the largest z = gain x + bias of a window, the first of
    equal ones.
    """
    x = (_read(y, corner, there, ACC) - mean) * scale
    best, place = gain * x + bias, tl.zeros_like(x).to(tl.int32)
    for k in tl.static_range(1, WINDOW * WINDOW):
        offset = (k // WINDOW) * W + k % WINDOW
        other = (_read(y, corner + offset, there, ACC) - mean) * scale
        z = gain * other + bias
        larger = (z > best) | (z != z)
        x = tl.where(larger, other, x)
        best = tl.where(larger, z, best)
        place = tl.where(larger, offset, place)
    return place, x, best


@triton.jit
def _corner(pooled, H, W, WINDOW: tl.constexpr):
    """The first place of the windows numbered `pooled`."""
    h, w = H // WINDOW, W // WINDOW
    image, inside = pooled // (h * w), pooled % (h * w)
    return image * (H * W) + (inside // w) * (WINDOW * W) + (inside % w) * WINDOW


@triton.jit
def _upstream(
    g, p, y, place, rows_y, rows_p, there, mean, scale, gain, bias, H, W,
    WINDOW: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """u at places of y: g where the place is chosen and p positive, else 0."""
    h, w = H // WINDOW, W // WINDOW
    image, inside = place // (H * W), place % (H * W)
    i, j = (inside // W) // WINDOW, (inside % W) // WINDOW
    there = there & (i < h) & (j < w)
    pooled = image * (h * w) + i * w + j
    there = there & (_read(p, rows_p + pooled, there, ACC) > 0)
    if WINDOW > 1:
        corner = _corner(pooled, H, W, WINDOW)
        first, _, _ = _chosen(y, rows_y + corner, there, mean, scale, gain, bias, W, WINDOW, ACC)
        there = there & (corner + first == place)
    return _read(g, rows_p + pooled, there, ACC)


@triton.jit
def norm_relu_pool(
    y, gain, bias, p, mean, scale, rows, B, H, W, F, of_gain, of_bias, EPS: tl.constexpr,
    WINDOW: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """p, mean and scale of y, gain, bias; the mean is corrected by that of what lies around it."""
    n, m = B * H * W, B * (H // WINDOW) * (W // WINDOW)
    row, exists, start = _rows_of(rows, n, ROWS)
    total = tl.zeros([ROWS, PLACES], ACC)
    for first in range(0, n, PLACES):
        place = first + tl.arange(0, PLACES)[None, :]
        total += _read(y, start + place, exists[:, None] & (place < n), ACC)
    middle = tl.sum(total, 1) / n
    one, two = tl.zeros([ROWS, PLACES], ACC), tl.zeros([ROWS, PLACES], ACC)
    for first in range(0, n, PLACES):
        place = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (place < n)
        off = tl.where(there, _read(y, start + place, there, ACC) - middle[:, None], 0)
        one += off
        two += off * off
    rest = tl.sum(one, 1) / n
    middle += rest
    factor = 1 / tl.sqrt(tl.sum(two, 1) / n - rest * rest + EPS)
    _write(mean, row, exists, middle)
    _write(scale, row, exists, factor)
    slope = _read_row(gain, row, exists, F, of_gain, ACC)
    shift = _read_row(bias, row, exists, F, of_bias, ACC)
    out = row.to(tl.int64)[:, None] * m
    for first in range(0, m, PLACES):
        pooled = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (pooled < m)
        corner = start + _corner(pooled, H, W, WINDOW)
        _, _, z = _chosen(
            y, corner, there, middle[:, None], factor[:, None], slope, shift, W, WINDOW, ACC
        )
        _write(p, out + pooled, there, tl.where(z <= 0, 0, z))


@triton.jit
def norm_relu_pool_grad(
    g, y, gain, bias, mean, scale, p, to_y, to_gain, dy, dgain, dbias, rows, B, H, W, F,
    of_gain, of_bias, TO_Y: tl.constexpr, TO_GAIN: tl.constexpr,
    WINDOW: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """dy = gain r (u - A / n - x D / n), dgain = D, dbias = A; added to what is there before."""
    n, m = B * H * W, B * (H // WINDOW) * (W // WINDOW)
    row, exists, rows_y = _rows_of(rows, n, ROWS)
    rows_p = row.to(tl.int64)[:, None] * m
    middle, r = _read(mean, row, exists, ACC)[:, None], _read(scale, row, exists, ACC)[:, None]
    slope = _read_row(gain, row, exists, F, of_gain, ACC)
    shift = _read_row(bias, row, exists, F, of_bias, ACC)
    one, two = tl.zeros([ROWS, PLACES], ACC), tl.zeros([ROWS, PLACES], ACC)
    for first in range(0, m, PLACES):
        pooled = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (pooled < m)
        corner = rows_y + _corner(pooled, H, W, WINDOW)
        _, x, _ = _chosen(y, corner, there, middle, r, slope, shift, W, WINDOW, ACC)
        positive = there & (_read(p, rows_p + pooled, there, ACC) > 0)
        u = _read(g, rows_p + pooled, positive, ACC)
        one += u
        two += u * x
    A, D = tl.sum(one, 1), tl.sum(two, 1)
    _write(dbias, row, exists, A)
    if TO_GAIN:
        _write(dgain, row, exists, D + _read(to_gain, row, exists, ACC))
    else:
        _write(dgain, row, exists, D)
    for first in range(0, n, PLACES):
        place = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (place < n)
        u = _upstream(
            g, p, y, place, rows_y, rows_p, there, middle, r, slope, shift, H, W, WINDOW, ACC
        )
        x = (_read(y, rows_y + place, there, ACC) - middle) * r
        found = slope * r * (u - A[:, None] / n - x * (D[:, None] / n))
        if TO_Y:
            found += _read(to_y, rows_y + place, there, ACC)
        _write(dy, rows_y + place, there, found)


@triton.jit
def _sums_of_second(
    v, g, p, y, rows_y, rows_p, exists, mean, scale, gain, bias, n, H, W,
    WINDOW: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Sums of v, v x and v u over the places of each row: three times [ROWS, 1]."""
    one, two = tl.zeros([ROWS, PLACES], ACC), tl.zeros([ROWS, PLACES], ACC)
    three = tl.zeros([ROWS, PLACES], ACC)
    for first in range(0, n, PLACES):
        place = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (place < n)
        u = _upstream(
            g, p, y, place, rows_y, rows_p, there, mean, scale, gain, bias, H, W, WINDOW, ACC
        )
        c = _read(v, rows_y + place, there, ACC)
        one += c
        two += c * (_read(y, rows_y + place, there, ACC) - mean) * scale
        three += c * u
    return tl.sum(one, 1)[:, None], tl.sum(two, 1)[:, None], tl.sum(three, 1)[:, None]


@triton.jit
def norm_relu_pool_second(
    v, s, t, g, y, gain, bias, mean, scale, dgain, dbias, p, dg, dy, d2gain, rows, B, H, W, F,
    of_s, of_t, of_gain, of_bias,
    WINDOW: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """dg, dy and d2gain of v dy + s dgain + t dbias."""
    n, m = B * H * W, B * (H // WINDOW) * (W // WINDOW)
    row, exists, rows_y = _rows_of(rows, n, ROWS)
    rows_p = rows_y // n * m
    middle, r = _read(mean, row, exists, ACC)[:, None], _read(scale, row, exists, ACC)[:, None]
    slope = _read_row(gain, row, exists, F, of_gain, ACC)
    shift = _read_row(bias, row, exists, F, of_bias, ACC)
    V1, V2, Q = _sums_of_second(
        v, g, p, y, rows_y, rows_p, exists, middle, r, slope, shift, n, H, W,
        WINDOW, ACC, ROWS, PLACES,
    )  # fmt: skip
    A, D = _read(dbias, row, exists, ACC)[:, None], _read(dgain, row, exists, ACC)[:, None]
    Q -= (A * V1 + D * V2) / n
    k = _read_row(s, row, exists, F, of_s, ACC) - slope * r * V2 / n
    el = -slope * r * D / n
    _write(d2gain, row[:, None], exists[:, None], r * Q)
    along = -r * (k * D + el * V2 + slope * r * Q) / n
    for first in range(0, n, PLACES):
        place = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (place < n)
        u = _upstream(
            g, p, y, place, rows_y, rows_p, there, middle, r, slope, shift, H, W, WINDOW, ACC
        )
        x = (_read(y, rows_y + place, there, ACC) - middle) * r
        u = k * u + el * _read(v, rows_y + place, there, ACC)
        _write(dy, rows_y + place, there, r * (u - (k * A + el * V1) / n) + x * along)
    level = _read_row(t, row, exists, F, of_t, ACC) - slope * r * V1 / n
    for first in range(0, m, PLACES):
        pooled = first + tl.arange(0, PLACES)[None, :]
        there = exists[:, None] & (pooled < m)
        corner = rows_y + _corner(pooled, H, W, WINDOW)
        place, x, _ = _chosen(y, corner, there, middle, r, slope, shift, W, WINDOW, ACC)
        positive = there & (_read(p, rows_p + pooled, there, ACC) > 0)
        found = slope * r * _read(v, corner + place, positive, ACC) + k * x + level
        _write(dg, rows_p + pooled, there, tl.where(positive, found, 0))
