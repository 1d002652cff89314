"""Batch normalisation, ReLU and 2 x 2 maxima in one pass, channels last.

    p = max over the window of max(0, gain (y - mean) / sqrt(var + EPS) + bias)

with mean and var of a group's channel over images and pixels (Ioffe & Szegedy 2015, algorithm 1).
Written with torch's operators, a step's passes over the largest arrays cost more than its
convolutions. Here one operator computes all three, one its gradient, one the gradient of that, on a
CPU in norm_relu_pool.cpp, which has the formulas, on CUDA in triton_source/norm.py or
norm_in_torch.py, in the memory order of gather_conv.py; further derivatives are those of the same
gradient in torch's operators. Which pixel a window passes on is a constant in every derivative; of
equal ones it is the first, as in max_pool2d. Gradients also get the result p, to know where it is
positive. vmap turns a batch of tasks into groups: y [G, B, H, W, F], gain, bias [G, F]."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.kernels import choice, native, norm_in_torch, norm_in_triton
from metalearn.kernels.gather_conv import new_images
from metalearn.kernels.norm_in_torch import EPS as EPS

_library = torch.library.Library("metalearn", "FRAGMENT")
_library.define(
    "norm_relu_pool(Tensor y, Tensor gain, Tensor bias, int window) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "norm_relu_pool_grad(Tensor g, Tensor y, Tensor gain, Tensor bias, Tensor mean, Tensor scale, "
    "Tensor p, int window, Tensor? to_y=None, Tensor? to_gain=None) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "norm_relu_pool_second(Tensor v, Tensor s, Tensor t, Tensor g, Tensor y, Tensor gain,"
    " Tensor bias, Tensor mean, Tensor scale, Tensor dgain, Tensor dbias, Tensor p, int window)"
    " -> (Tensor, Tensor, Tensor)"
)
_ops = torch.ops.metalearn
Three = tuple[Tensor, Tensor, Tensor]


def norm_relu_pool(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Tensor:
    """Normalise, apply ReLU, take maxima over w x w: [B, H, W, F], [F], [F] -> [B, H//w, W//w, F].

    w is 1 or 2; the tensors must be `native.usable`."""
    return with_moments(y, gain, bias, window)[0]


def with_moments(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    """`norm_relu_pool`, mean and 1 / sqrt(var + EPS) of the batch [F], which have no gradient."""
    grouped = y.unsqueeze(0), gain.unsqueeze(0), bias.unsqueeze(0)
    p, mean, scale = cast(Three, _NormReluPool.apply(*grouped, window))  # type: ignore[no-untyped-call]
    return p.squeeze(0), mean.squeeze(0), scale.squeeze(0)


def _run(
    operation: int, window: int, y: Tensor, inputs: tuple[Tensor, ...], outputs: Three
) -> Three:
    """Call the compiled function on arrays in its order: 0 forward, 1 gradient, 2 its gradient."""
    compiled = native.kernel()
    assert compiled is not None
    if y.numel() == 0:
        return cast(Three, tuple(out.zero_() for out in outputs))
    arrays = [value.contiguous() for value in (*inputs, *outputs)]
    pointers = (ctypes.c_void_p * len(arrays))(*(value.data_ptr() for value in arrays))
    threads = torch.get_num_threads()
    compiled.norm_relu_pool(operation, y.element_size(), pointers, *y.shape, window, threads)
    return outputs


def _fake(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    groups, batch, height, width, filters = y.shape
    p = new_images(y, (groups, batch, height // window, width // window, filters))
    return p, y.new_empty(groups, filters), y.new_empty(groups, filters)


def _grad_fake(
    g: Tensor, y: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, *unused: Any
) -> Three:
    return new_images(y, y.shape), y.new_empty(gain.shape), y.new_empty(gain.shape)


def _second_fake(v: Tensor, s: Tensor, t: Tensor, g: Tensor, y: Tensor, *unused: Any) -> Three:
    return new_images(y, g.shape), new_images(y, y.shape), y.new_empty(s.shape)


def _forward(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    return _run(0, window, y, (y, gain, bias), _fake(y, gain, bias, window))


def _grad(g: Tensor, y: Tensor, gain: Tensor, *rest: Any) -> Three:
    *tensors, _, window = rest[:5]  # the pixels are recomputed from y: p is not read
    inputs = (g, y, gain, *tensors)
    return _run(1, window, y, inputs, _grad_fake(*inputs))


def _second(v: Tensor, s: Tensor, t: Tensor, g: Tensor, y: Tensor, *rest: Any) -> Three:
    *tensors, _, window = rest
    return _run(2, window, y, (v, s, t, g, y, *tensors), _second_fake(v, s, t, g, y))


_library.impl("norm_relu_pool", _forward, "CPU")
_library.impl("norm_relu_pool_grad", _grad, "CPU")
_library.impl("norm_relu_pool_second", _second, "CPU")
choice.register(
    _library,
    norm_in_triton,
    norm_in_torch,
    *("norm_relu_pool", "norm_relu_pool_grad", "norm_relu_pool_second"),
)
torch.library.register_fake("metalearn::norm_relu_pool", _fake, lib=_library)
torch.library.register_fake("metalearn::norm_relu_pool_grad", _grad_fake, lib=_library)
torch.library.register_fake("metalearn::norm_relu_pool_second", _second_fake, lib=_library)


class _NormReluPool(torch.autograd.Function):
    """(p, mean, scale) of y, gain, bias; scale is 1 / sqrt(var + EPS); mean and scale are constants
    for differentiation."""

    @staticmethod
    def forward(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
        return cast(Three, _ops.norm_relu_pool(*map(native.in_order, (y, gain, bias)), window))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
        p, mean, scale = output
        ctx.mark_non_differentiable(mean, scale)
        ctx.save_for_backward(*inputs[:3], mean, scale, p)
        ctx.window = inputs[3]

    @staticmethod
    def backward(ctx: Any, g: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, p = ctx.saved_tensors  # no gradient flows through p
        return *_Grad.apply(g, *tensors, p.detach(), ctx.window), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *inputs: Any
    ) -> tuple[Three, tuple[int, int, int]]:
        return _grouped(_NormReluPool, info.batch_size, in_dims, inputs)


class _Grad(torch.autograd.Function):
    """(dy, dgain, dbias) of g, y, gain; bias and p choose the pixels, without gradient."""

    @staticmethod
    def forward(*inputs: Any) -> Three:
        *arrays, window = inputs
        return cast(Three, _ops.norm_relu_pool_grad(*map(native.in_order, arrays), window))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
        *arrays, p, ctx.window = inputs
        ctx.save_for_backward(*arrays, output[1], output[2], p)

    @staticmethod
    def backward(ctx: Any, v: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Second.apply(v, s, t, *ctx.saved_tensors, ctx.window)  # type: ignore[no-untyped-call]
        return *gradients, *[None] * 5

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *inputs: Any
    ) -> tuple[Three, tuple[int, int, int]]:
        return _grouped(_Grad, info.batch_size, in_dims, inputs)


class _Second(torch.autograd.Function):
    """(dg, dy, dgain) of v for _Grad's dy, s for its dgain and t for its dbias."""

    @staticmethod
    def forward(*inputs: Any) -> Three:
        *arrays, window = inputs
        return cast(Three, _ops.norm_relu_pool_second(*map(native.in_order, arrays), window))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.window = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        v, s, t, g, y, gain, bias = ctx.saved_tensors
        vjp: Any = torch.func.vjp

        def second(v: Tensor, s: Tensor, t: Tensor, g: Tensor, y: Tensor, gain: Tensor) -> Three:
            _, vjp_fn = vjp(lambda g, y, gain: plain_grad(g, y, gain, bias, ctx.window), g, y, gain)
            return cast(Three, vjp_fn((v, s, t)))

        _, vjp_fn = vjp(second, v, s, t, g, y, gain)
        return *vjp_fn(grads), *[None] * 7

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *inputs: Any
    ) -> tuple[Three, tuple[int, int, int]]:
        return _grouped(_Second, info.batch_size, in_dims, inputs)


def plain_grad(g: Tensor, y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Three:
    """Return (dy, dgain, dbias) in torch's operators, differentiable in g, y and gain.

    [G, B, h, w, F], [G, B, H, W, F], [G, F] -> [G, B, H, W, F], [G, F], [G, F]
    """
    axes = (1, 2, 3)
    gain, bias = gain[:, None, None, None], bias[:, None, None, None]
    off = y - y.mean(axes, keepdim=True)
    scale = torch.rsqrt(off.square().mean(axes, keepdim=True) + EPS)
    x = off * scale
    u = _spread(g, (gain * x + bias).detach(), window)
    dgain, dbias = (u * x).sum(axes, keepdim=True), u.sum(axes, keepdim=True)
    count = y.shape[1] * y.shape[2] * y.shape[3]
    dy = gain * scale * (u - dbias / count - x * dgain / count)
    return dy, dgain[:, 0, 0, 0], dbias[:, 0, 0, 0]


def _spread(g: Tensor, z: Tensor, window: int) -> Tensor:
    """Return g [G, B, h, w, F] at the first maximum of each window of z [G, B, H, W, F].

    Elsewhere, and where the maximum is not positive, 0."""
    height, width = z.shape[2] // window, z.shape[3] // window
    parts = (
        z[:, :, : height * window, : width * window]
        .unflatten(2, (height, window))
        .unflatten(4, (width, window))
    )
    parts = parts.movedim(3, 4).flatten(4, 5)  # [G, B, h, w, window ** 2, F]
    index = torch.arange(window**2, device=z.device)[:, None]
    chosen = ((parts.argmax(4, keepdim=True) == index) & (parts.amax(4, keepdim=True) > 0)).to(
        g.dtype
    )
    spread = (
        (chosen * g.unsqueeze(4))
        .unflatten(4, (window, window))
        .movedim(4, 3)
        .flatten(4, 5)
        .flatten(2, 3)
    )
    return F.pad(spread, (0, 0, 0, z.shape[3] - width * window, 0, z.shape[2] - height * window))


def _grouped(
    function: Any, count: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[Three, tuple[int, int, int]]:
    """vmap of all three: the batch of tasks becomes groups."""
    *arrays, window = inputs
    batched = (
        a.expand(count, *a.shape) if dim is None else a.movedim(dim, 0)
        for a, dim in zip(arrays, in_dims)
    )
    outputs = function.apply(*(a.reshape(-1, *a.shape[2:]) for a in batched), window)
    return cast(Three, tuple(a.reshape(count, -1, *a.shape[1:]) for a in outputs)), (0, 0, 0)
