"""Convolution, channels last, with weights for each task, differentiable any number of times.

Three operators, on a CPU from conv.cpp and on CUDA from gather_conv.py; the derivatives of each are
the other two; x [G, B, H, W, C], w [Gw, k, k, C, F] with Gw = G or 1, y [G, B,
Ho, Wo, F], padding k // 2:

    conv(x, w)          y[o] = sum_a w[a]^T x[s o + a - k // 2]
    conv_input(g, w)    its transpose in x
    conv_weight(x, g)   its transpose in w: [G, k, k, C, F]

vmap turns a batch of tasks into groups. Elsewhere (meta tensors, no compiler) torch's convolution
is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.kernels import choice, gather_conv, gather_in_triton, native

_library = torch.library.Library("metalearn", "DEF")
_library.define("conv(Tensor x, Tensor w, int stride) -> Tensor")
_library.define(
    "conv_input(Tensor g, Tensor w, int stride, int height, int width, Tensor? to=None) -> Tensor"
)
_library.define("conv_weight(Tensor x, Tensor g, int stride, int size) -> Tensor")
_ops = torch.ops.metalearn


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Cross-correlation, padding k // 2, weight as torch's.

    x [B, H, W, C], weight [F, C, k, k], bias [F] -> [B, Ho, Wo, F].
    """
    usable = native.usable(x)
    if usable and x.is_cuda:
        x, weight = _autocast(x), _autocast(weight)
    if usable and _fits(x, weight):  # else torch says what does not fit
        y = conv(x.unsqueeze(0), weight.permute(2, 3, 1, 0).unsqueeze(0), stride).squeeze(0)
    else:
        size = weight.shape[-1]
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=stride, padding=size // 2).permute(
            0, 2, 3, 1
        )
    return y if bias is None else y + bias


def _fits(x: Tensor, weight: Tensor) -> bool:
    same = x.dtype == weight.dtype and x.shape[-1] == weight.shape[1]
    return same and weight.shape[2] == weight.shape[3]


def _autocast(value: Tensor) -> Tensor:
    """Return `value` in the type that autocast gives to convolutions on CUDA, if it is enabled."""
    if not torch.is_autocast_enabled("cuda"):
        return value
    return value.to(torch.get_autocast_dtype("cuda"))


def _run(
    operation: int,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int,
) -> Tensor:
    """Call the compiled function: 0 forward, 1 input gradient, 2 weight gradient.

    x and w are the shapes of the convolution."""
    compiled = native.kernel()
    assert compiled is not None
    a, b = a.contiguous(), b.contiguous()
    if out.numel() == 0 or a.numel() == 0 or b.numel() == 0:
        return out.zero_()
    groups, batch, height, width, channels = x
    sizes = (groups, batch, height, width, channels, w[-1], w[1], stride, w[0])
    compiled.convolution(
        operation,
        a.element_size(),
        a.data_ptr(),
        b.data_ptr(),
        out.data_ptr(),
        *sizes,
        torch.get_num_threads(),
    )
    return out


def _length(size: int, kernel: int, stride: int) -> int:
    return gather_conv.length(size, kernel, stride)


def _conv_fake(x: Tensor, w: Tensor, stride: int) -> Tensor:
    groups, batch, height, width, _ = x.shape
    size = w.shape[1]
    extents = _length(height, size, stride), _length(width, size, stride)
    return gather_conv.new_images(x, (groups, batch, *extents, w.shape[-1]))


def _conv_input_fake(
    g: Tensor, w: Tensor, stride: int, height: int, width: int, to: Tensor | None = None
) -> Tensor:
    return gather_conv.new_images(g, (*g.shape[:2], height, width, w.shape[3]))


def _conv_weight_fake(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
    return gather_conv.new_weights(x, (x.shape[0], size, size, x.shape[-1], g.shape[-1]))


def _conv(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return _run(0, x, w, _conv_fake(x, w, stride), tuple(x.shape), tuple(w.shape), stride)


def _conv_input(g: Tensor, w: Tensor, stride: int, height: int, width: int) -> Tensor:
    out = _conv_input_fake(g, w, stride, height, width)
    return _run(1, g, w, out, tuple(out.shape), tuple(w.shape), stride)


def _conv_weight(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
    out = _conv_weight_fake(x, g, stride, size)
    return _run(2, x, g, out, tuple(x.shape), tuple(out.shape), stride)


_library.impl("conv", _conv, "CPU")
_library.impl("conv_input", _conv_input, "CPU")
_library.impl("conv_weight", _conv_weight, "CPU")
_library.define("patches(Tensor x, int size, int stride) -> Tensor")
_library.define(
    "conv_of_patches(Tensor taken, Tensor w, int batch, int height, int width) -> Tensor"
)
_library.define("conv_weight_of_patches(Tensor taken, Tensor g, int size) -> Tensor")
choice.register(
    _library, gather_in_triton, gather_conv, "conv", "conv_input", "conv_weight", "patches"
)
# for several convolutions of one input (executors/passes/shared_patches.py)
_library.impl("conv_of_patches", gather_conv.conv_of_patches, "CUDA")
_library.impl("conv_weight_of_patches", gather_conv.conv_weight_of_patches, "CUDA")
torch.library.register_fake("metalearn::conv", _conv_fake, lib=_library)
torch.library.register_fake("metalearn::conv_input", _conv_input_fake, lib=_library)
torch.library.register_fake("metalearn::conv_weight", _conv_weight_fake, lib=_library)


class _Conv(torch.autograd.Function):
    """y [G, B, Ho, Wo, F] of x [G, B, H, W, C], w [Gw, k, k, C, F]."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, stride: int) -> Tensor:
        return cast(Tensor, _ops.conv(native.in_order(x), native.in_order(w), stride))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.stride = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        need_x, need_w, _ = ctx.needs_input_grad
        dx = conv_input(grad, w, ctx.stride, x.shape[2], x.shape[3]) if need_x else None
        return dx, _weight_grad(x, grad, ctx.stride, w) if need_w else None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, stride: int
    ) -> tuple[Tensor, int]:
        return _vmap_conv(conv, info.batch_size, in_dims, x, w, stride)


class _ConvInput(torch.autograd.Function):
    """dx [G, B, H, W, C] of g [G, B, Ho, Wo, F], w [Gw, k, k, C, F]."""

    @staticmethod
    def forward(g: Tensor, w: Tensor, stride: int, height: int, width: int) -> Tensor:
        g, w = native.in_order(g), native.in_order(w)
        return cast(Tensor, _ops.conv_input(g, w, stride, height, width))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.stride = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        need_g, need_w, *_ = ctx.needs_input_grad
        dg = conv(grad, w, ctx.stride) if need_g else None
        return dg, _weight_grad(grad, g, ctx.stride, w) if need_w else None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        g: Tensor,
        w: Tensor,
        stride: int,
        height: int,
        width: int,
    ) -> tuple[Tensor, int]:
        return _vmap_conv(conv_input, info.batch_size, in_dims, g, w, stride, height, width)


class _ConvWeight(torch.autograd.Function):
    """dw [G, k, k, C, F] of x [G, B, H, W, C], g [G, B, Ho, Wo, F]."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
        return cast(Tensor, _ops.conv_weight(native.in_order(x), native.in_order(g), stride, size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.stride = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, g = ctx.saved_tensors
        need_x, need_g, *_ = ctx.needs_input_grad
        dx = conv_input(g, grad, ctx.stride, x.shape[2], x.shape[3]) if need_x else None
        return dx, conv(x, grad, ctx.stride) if need_g else None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, g: Tensor, stride: int, size: int
    ) -> tuple[Tensor, int]:
        x = _front(x, in_dims[0], info.batch_size)
        g = _front(g, in_dims[1], info.batch_size)
        dw = conv_weight(_flat(x), _flat(g), stride, size)
        return dw.reshape(info.batch_size, -1, *dw.shape[1:]), 0


def conv(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return cast(Tensor, _Conv.apply(x, w, stride))  # type: ignore[no-untyped-call]


def conv_input(g: Tensor, w: Tensor, stride: int, height: int, width: int) -> Tensor:
    return cast(Tensor, _ConvInput.apply(g, w, stride, height, width))  # type: ignore[no-untyped-call]


def conv_weight(x: Tensor, g: Tensor, stride: int, size: int) -> Tensor:
    return cast(Tensor, _ConvWeight.apply(x, g, stride, size))  # type: ignore[no-untyped-call]


def _weight_grad(x: Tensor, g: Tensor, stride: int, w: Tensor) -> Tensor:
    """Return the gradient of weights shaped as w, summed over all groups if they share them."""
    if w.shape[0] == 1 and x.shape[0] > 1:
        x, g = x.reshape(1, -1, *x.shape[2:]), g.reshape(1, -1, *g.shape[2:])
    return conv_weight(x, g, stride, w.shape[1])


def _front(value: Tensor, dim: int | None, count: int) -> Tensor:
    """Return `value` with the batch axis first, added by repetition if there is none."""
    return value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)


def _flat(value: Tensor) -> Tensor:
    """[V, G, ...] -> [V * G, ...]"""
    return value.reshape(-1, *value.shape[2:])


def _vmap_conv(
    op: Callable[..., Tensor],
    count: int,
    in_dims: tuple[Any, ...],
    x: Tensor,
    w: Tensor,
    *options: int,
) -> tuple[Tensor, int]:
    """vmap of conv and conv_input: tasks become groups, or, where all groups share their weights,
    just more images.
    """
    x = _front(x, in_dims[0], count)  # [V, G, B, ...]
    groups, batch = x.shape[1:3]
    if in_dims[1] is None and w.shape[0] == 1:
        y = op(_flat(x), w, *options)
    elif in_dims[1] is None:
        y = op(x.transpose(0, 1).reshape(groups, count * batch, *x.shape[3:]), w, *options)
        return y.reshape(groups, count, batch, *y.shape[2:]), 1
    else:
        w = _front(w, in_dims[1], count)
        images = (
            _flat(x) if w.shape[1] == groups else x.reshape(count, groups * batch, *x.shape[3:])
        )
        y = op(images, _flat(w), *options)
    return y.reshape(count, groups, batch, *y.shape[2:]), 0
