"""The three operators of norm_relu_pool.py as one Triton kernel each (triton_source/norm.py).

Shapes as in norm_in_torch.py, which is the reference: y [G, B, H, W, F], gain, bias, mean, scale
[G, F]. Gains, biases and their tangents may be slices of one vector of all parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metalearn.kernels.gather_conv import images, planes
from metalearn.kernels.launch import accumulator, launch, tile
from metalearn.kernels.norm_in_torch import EPS, Three


def norm_relu_pool(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    """Return (p, mean, scale)."""
    p, mean, scale = _pooled(y, window), _per_row(y), _per_row(y)
    gain, bias = _sliced(gain), _sliced(bias)
    arrays = [planes(y).contiguous(), gain, bias, p, mean, scale]
    _run("norm_relu_pool", y, arrays, [gain, bias], window, EPS=EPS)
    return _images(p, y, window), mean, scale


def norm_relu_pool_grad(
    g: Tensor,
    y: Tensor,
    gain: Tensor,
    bias: Tensor,
    mean: Tensor,
    scale: Tensor,
    p: Tensor,
    window: int,
    to_y: Tensor | None = None,
    to_gain: Tensor | None = None,
) -> Three:
    """Return (dy, dgain, dbias); with `to_y` and `to_gain`, dy and dgain are added to these."""
    dy, dgain, dbias = _pooled(y, 1), _per_row(y), _per_row(y)
    gain, bias = _sliced(gain), _sliced(bias)
    large = [planes(value).contiguous() for value in (g, y, p)]
    stats = [value.contiguous() for value in (mean, scale)]
    more_y = dy if to_y is None else planes(to_y).contiguous()
    more_gain = dgain if to_gain is None else to_gain.contiguous()
    arrays = [*large[:2], gain, bias, *stats, large[2], more_y, more_gain, dy, dgain, dbias]
    added = {"TO_Y": to_y is not None, "TO_GAIN": to_gain is not None}
    _run("norm_relu_pool_grad", y, arrays, [gain, bias], window, **added)
    return _images(dy, y, 1), dgain, dbias


def norm_relu_pool_second(
    v: Tensor,
    s: Tensor,
    t: Tensor,
    g: Tensor,
    y: Tensor,
    gain: Tensor,
    bias: Tensor,
    mean: Tensor,
    scale: Tensor,
    dgain: Tensor,
    dbias: Tensor,
    p: Tensor,
    window: int,
) -> Three:
    """Return (dg, dy, dgain) of v for _grad's dy, s for its dgain and t for its dbias."""
    dg, dy, d2gain = _pooled(y, window), _pooled(y, 1), _per_row(y)
    s, t, gain, bias = (_sliced(value) for value in (s, t, gain, bias))
    v, g, y_rows, p = (planes(value).contiguous() for value in (v, g, y, p))
    stats = [value.contiguous() for value in (mean, scale, dgain, dbias)]
    arrays = [v, s, t, g, y_rows, gain, bias, *stats, p, dg, dy, d2gain]
    _run("norm_relu_pool_second", y, arrays, [s, t, gain, bias], window)
    return _images(dg, y, window), _images(dy, y, 1), d2gain


def _run(
    name: str,
    y: Tensor,
    arrays: Sequence[Tensor],
    sliced: Sequence[Tensor],
    window: int,
    **fixed: float,
) -> None:
    groups, batch, height, width, filters = y.shape
    programs, block_rows, block_width = tile(groups * filters, batch * height * width)
    numbers = groups * filters, batch, height, width, filters
    launch(
        f"norm.{name}",
        programs,
        arrays,
        *numbers,
        *(value.stride(0) for value in sliced),
        WINDOW=window,
        ACC=accumulator(y.dtype),
        ROWS=block_rows,
        PLACES=block_width,
        **fixed,
    )


def _sliced(value: Tensor) -> Tensor:
    """Return [G, F] with the numbers of a group contiguous."""
    return value if value.stride(1) == 1 else value.contiguous()


def _pooled(y: Tensor, window: int) -> Tensor:
    """Return new rows [G, F, B h w]."""
    groups, batch, height, width, filters = y.shape
    return y.new_empty(groups, filters, batch * (height // window) * (width // window))


def _per_row(y: Tensor) -> Tensor:
    return y.new_empty(y.shape[0], y.shape[-1])


def _images(rows: Tensor, y: Tensor, window: int) -> Tensor:
    return images(rows, y.shape[1], y.shape[2] // window, y.shape[3] // window)
