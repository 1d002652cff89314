"""The three operators of norm_relu_pool.py in a few torch operators: on CUDA without Triton.

Formulas and names as in norm_relu_pool.cpp; y [G, B, H, W, F], gain, bias, mean, scale [G, F]. A
channel of a task is a row [B H W] of torch's batch normalisation: r (u - A / n - x D / n) is its
derivative, which the second gradient takes of v and of k u + l v."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.kernels.gather_conv import images, planes

EPS = 1e-5
Three = tuple[Tensor, Tensor, Tensor]


def norm_relu_pool(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    """Return (p, mean, scale)."""
    rows = planes(y)
    channels = rows.reshape(1, -1, rows.shape[-1])
    x, mean, scale = torch.native_batch_norm(channels, None, None, None, None, True, 0.0, EPS)
    z = torch.addcmul(bias.unsqueeze(2), x.view(rows.shape), gain.unsqueeze(2))
    if window == 1:
        p = images(z.relu_(), *y.shape[1:4])
    else:
        maxima, _ = _pooled(z, y, window)
        p = images(maxima.relu_().flatten(2), *maxima.shape[2:])
    return p, mean.view(gain.shape).to(y.dtype), scale.view(gain.shape).to(y.dtype)


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
    u = _positive(g, p)
    if window > 1:
        u = _spread(u, _indices(y, gain, bias, mean, scale, window), y, window)
    dy, dgain, dbias = _centred(u.flatten(2), y, mean, scale)
    dy = images(dy.mul_(gain.unsqueeze(2)), *y.shape[1:4])
    dy = dy if to_y is None else dy.add_(to_y)
    return dy, dgain if to_gain is None else dgain + to_gain, dbias


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
    factor, v = -1 / (y.shape[1] * y.shape[2] * y.shape[3]), planes(v)
    x = _normalised(y, mean, scale)
    w, v2, _ = _centred(v, y, mean, scale)
    du = torch.addcmul(t.unsqueeze(2), w, gain.unsqueeze(2)).addcmul_(x, s.unsqueeze(2))
    u = _positive(g, p)
    if window == 1:
        dg = _positive(images(du, *y.shape[1:4]), p)
    else:
        indices = _indices(y, gain, bias, mean, scale, window)
        u = _spread(u, indices, y, window)
        chosen = du.view(*indices.shape[:3], -1).gather(3, indices.flatten(3)).flatten(2)
        dg = _positive(images(chosen, *p.shape[1:4]), p)
    u = u.flatten(2)
    slope, gained = gain * scale, (u * w).sum(2)
    h = u.mul_(torch.addcmul(s, slope, v2, value=factor).unsqueeze(2))
    h.addcmul_(v, (slope * dgain).unsqueeze(2), value=factor)
    dy, *_ = _centred(h, y, mean, scale)
    dy.addcmul_(x, (slope * gained).unsqueeze(2), value=factor)
    return images(dg.flatten(2), *p.shape[1:4]), images(dy, *y.shape[1:4]), gained


def _centred(u: Tensor, y: Tensor, mean: Tensor, scale: Tensor) -> Three:
    """Return (r (u - A / n - x D / n), D, A) of rows u [G, F, n]: [G, F, n], [G, F], [G, F]."""
    kind = torch.promote_types(y.dtype, torch.float32)
    statistics = mean.reshape(-1).to(kind), scale.reshape(-1).to(kind)
    u, rows = (a.reshape(1, -1, a.shape[-1]) for a in (u, planes(y)))
    gradients = torch.ops.aten.native_batch_norm_backward(
        u, rows, None, None, None, *statistics, True, EPS, [True, True, True]
    )
    dx, dgain, dbias = cast(Three, gradients)
    dgain, dbias = (a.view(mean.shape).to(y.dtype) for a in (dgain, dbias))
    return dx.view(*mean.shape, -1), dgain, dbias


def _normalised(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return x as rows [G, F, n]."""
    return (planes(y) - mean.unsqueeze(2)).mul_(scale.unsqueeze(2))


def _channels_first(x: Tensor) -> Tensor:
    """[G, B, H, W, F] -> [G, F, B, H, W]."""
    return x.permute(0, 4, 1, 2, 3)


def _positive(g: Tensor, p: Tensor) -> Tensor:
    """Return g [G, B, h, w, F] where p is positive, else 0, as [G, F, B, h, w]."""
    g, p = _channels_first(g), _channels_first(p)
    out = torch.empty(g.shape, dtype=g.dtype, device=g.device)
    torch.ops.aten.threshold_backward(g, p, 0, grad_input=out)
    return out


def _pooled(z: Tensor, y: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return maxima of rows z [G, F, B H W] and the first index of each in its image.

    Both [G, F, B, h, w]."""
    images_of_channels = z.view(-1, *y.shape[1:4])  # [G F, B, H, W]
    pooled = torch.ops.aten.max_pool2d_with_indices(images_of_channels, [window, window])
    maxima, indices = (a.view(*z.shape[:2], *a.shape[1:]) for a in pooled)
    return maxima, indices


def _indices(
    y: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, window: int
) -> Tensor:
    """Return the chosen index of each window, h W + w of its image: [G, F, B, h, w] int64."""
    x = _normalised(y, mean, scale)
    return _pooled(torch.addcmul(bias.unsqueeze(2), x, gain.unsqueeze(2)), y, window)[1]


def _spread(u: Tensor, indices: Tensor, y: Tensor, window: int) -> Tensor:
    """Return u [G, F, B, h, w] at the chosen index of each window, else 0: [G, F, B, H, W]."""
    (height, width), (rows, columns) = y.shape[2:4], indices.shape[3:]
    row = torch.arange(rows * window, device=u.device).view(rows, window, 1, 1)
    number = row * width + torch.arange(columns * window, device=u.device).view(columns, window)
    chosen = indices[..., :, None, :, None] == number  # [G, F, B, h, window, w, window]
    spread = torch.where(chosen, u[..., :, None, :, None], 0)
    spread = spread.view(*u.shape[:3], rows * window, columns * window)
    border = 0, width - columns * window, 0, height - rows * window
    return F.pad(spread, border) if any(border) else spread
