"""Find the axis of the classes in the outputs of a module if shapes alone cannot tell.

Labels [B, *Y] need outputs [B, *Y, C]. Outputs [B, C, H, W] of a convolution have the same shape
if the images are C pixels wide, and would be compared with the labels of other positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.models.external.module import Inputs, Output, call_module, copy_module, entry


def check_class_axis(
    module: nn.Module, x: Tensor, inputs: Inputs, output: Output, classes: int
) -> None:
    """Raise ConfigError if outputs [B, C, *Y, C] have the classes on axis 1.

    Warns if the axis cannot be determined; does nothing for outputs of another shape."""
    calls: list[tuple[int, Tensor]] = []  # (axis of the classes, output) of every layer with C

    def record(axis: int) -> Any:
        return lambda layer, args, out: calls.append((axis, out))

    module = copy_module(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == classes:
            layer.register_forward_hook(record(-1))
        if isinstance(layer, _ConvNd) and layer.out_channels == classes:
            layer.register_forward_hook(record(1))
    with torch.enable_grad():
        out = entry(call_module(module, x.clone(), inputs), output)
    if out.dim() < 3 or classes < 2 or not out.shape[1] == out.shape[-1] == classes:
        return
    axes = [_axis(out, value, axis) for axis, value in reversed(calls)]
    axis = next((candidate for candidate in axes if candidate), 0)
    if axis == 1:
        text = f"has the classes on axis 1 of {list(out.shape)}: they must be on the last axis, "
        text += "out.movedim(1, -1), as labels [B, *Y] need outputs [B, *Y, C]"
        raise ConfigError((type(module).__name__, text))
    if axis == 0:
        log.warning(
            "outputs %s have classes on the last axis; axis 1 has the same size: a network with "
            "the classes there needs out.movedim(1, -1)",
            list(out.shape),
        )


def _axis(out: Tensor, value: Tensor, axis: int) -> int:
    """Return 1 or -1, the axis of out [B, C, *Y, C] with the classes of `value`; 0: unknown."""
    if value is out:
        return axis
    if not value.requires_grad or value.dim() < 3:
        return 0
    # index 0 of axis 1, index 1 of the last axis
    entry_sum = out[:, 0].flatten(1)[:, 1].sum()
    grad = torch.autograd.grad(entry_sum, value, retain_graph=True, allow_unused=True)[0]
    if grad is None:
        return 0
    nonzero = grad.movedim(axis, -1).abs().sum(0).nonzero()  # [*, positions of value and class]
    classes = set(nonzero[:, -1].tolist())
    if len(classes) == 1:
        return {0: 1, 1: -1}.get(classes.pop(), 0)
    positions = {tuple(position) for position in nonzero[:, :-1].tolist()}
    first = (*[0] * (out.dim() - 3), 1)  # if the last axis is one of positions
    last = (0,) * (out.dim() - 2)
    if (first in positions) != (last in positions) and len(positions) == 1:
        return 1 if first in positions else -1
    return 0
