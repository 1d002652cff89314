"""The three operators of norm_relu_pool.py in few of torch's operators: their kernels on CUDA.

Formulas and names as in norm_relu_pool.cpp; y [G, B, H, W, F], gain, bias, mean, scale [G, F]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5
AXES = (1, 2, 3)
Three = tuple[Tensor, Tensor, Tensor]


def norm_relu_pool(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    """(p, mean, scale)."""
    var, mean = torch.var_mean(y, AXES, correction=0)
    scale = (var + EPS).rsqrt_()
    z = torch.addcmul(_wide(bias), _normalised(y, mean, scale), _wide(gain))
    p = z if window == 1 else _windows(z, window).amax(4)
    return p.relu_(), mean, scale


def norm_relu_pool_grad(
    g: Tensor, y: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, window: int
) -> Three:
    """(dy, dgain, dbias)."""
    x = _normalised(y, mean, scale)
    u = _spread(g, torch.addcmul(_wide(bias), x, _wide(gain)), window)
    dbias, dgain = u.sum(AXES), (u * x).sum(AXES)
    slope = gain * scale
    each = slope * (-1 / _places(y))
    dy = torch.addcmul(_wide(each * dbias), u, _wide(slope))
    return dy.addcmul_(x, _wide(each * dgain)), dgain, dbias


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
    window: int,
) -> Three:
    """(dg, dy, dgain) of v for _grad's dy, s for its dgain and t for its dbias."""
    share = 1 / _places(y)
    x = _normalised(y, mean, scale)
    z = torch.addcmul(_wide(bias), x, _wide(gain))
    u = _spread(g, z, window)
    v1, v2, vu = v.sum(AXES), (v * x).sum(AXES), (v * u).sum(AXES)
    slope = gain * scale
    each = slope * -share
    k, less = torch.addcmul(s, each, v2), each * dgain  # `less` is l of the formulas
    du = torch.addcmul(_wide(torch.addcmul(t, each, v1)), v, _wide(slope)).addcmul_(x, _wide(k))
    dg = _gathered(du, z, window)
    q = vu - (dbias * v1).addcmul_(dgain, v2).mul_(share)
    gained = scale * q
    k, less = k * scale, less * scale
    shift = (k * dbias).addcmul_(less, v1).mul_(-share)
    along = (k * dgain).addcmul_(less, v2).addcmul_(slope, gained).mul_(-share)
    dy = torch.addcmul(_wide(shift), u, _wide(k))
    return dg, dy.addcmul_(v, _wide(less)).addcmul_(x, _wide(along)), gained


def _wide(value: Tensor) -> Tensor:
    """[G, F] -> [G, 1, 1, 1, F]."""
    return value[:, None, None, None]


def _places(y: Tensor) -> int:
    return y.shape[1] * y.shape[2] * y.shape[3]


def _normalised(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (y - _wide(mean)).mul_(_wide(scale))


def _windows(z: Tensor, window: int) -> Tensor:
    """[G, B, H, W, F] -> [G, B, h, w, window ** 2, F], an odd border left out."""
    height, width = z.shape[2] // window, z.shape[3] // window
    parts = z[:, :, : height * window, : width * window]
    parts = parts.reshape(*z.shape[:2], height, window, width, window, z.shape[-1])
    return parts.movedim(3, 4).flatten(4, 5)


def _chosen(z: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(place of the first largest of each window, whether it is positive): [G, B, h, w, 1, F]."""
    parts = _windows(z, window)
    place = parts.argmax(4, keepdim=True)
    return place, parts.gather(4, place) > 0


def _spread(g: Tensor, z: Tensor, window: int) -> Tensor:
    """g [G, B, h, w, F] at the first largest place of each window of z, where that is positive."""
    if window == 1:
        return torch.ops.aten.threshold_backward(g, z, 0)  # type: ignore[no-any-return]
    place, positive = _chosen(z, window)
    numbers = torch.arange(window**2, device=z.device)[:, None]
    chosen = positive & (place == numbers)
    whole = torch.where(chosen, g.unsqueeze(4), 0)
    whole = whole.unflatten(4, (window, window)).movedim(4, 3).flatten(4, 5).flatten(2, 3)
    height, width = (size - size // window * window for size in z.shape[2:4])
    return F.pad(whole, (0, 0, 0, width, 0, height)) if height or width else whole


def _gathered(u: Tensor, z: Tensor, window: int) -> Tensor:
    """The transpose of `_spread`: [G, B, H, W, F] -> [G, B, h, w, F]."""
    if window == 1:
        return torch.ops.aten.threshold_backward(u, z, 0)  # type: ignore[no-any-return]
    place, positive = _chosen(z, window)
    return torch.where(positive, _windows(u, window).gather(4, place), 0).squeeze(4)


def register(library: torch.library.Library) -> None:
    """As the operators' kernels on CUDA."""
    for operator in (norm_relu_pool, norm_relu_pool_grad, norm_relu_pool_second):
        library.impl(operator.__name__, operator, "CUDA")
