"""Launches of Triton kernels on the emulated CUDA device: each is one node of a captured graph.

The emulator records torch's own operators, so a launch becomes one, which writes into its arrays.
It runs the kernel in Triton's interpreter where that is asked for (TRITON_INTERPRET=1), else
torch's operators in its place: what is counted is the same, as a launch is one kernel on a card."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.executors.passes import fusion
from metalearn.kernels import (
    choice,
    draw,
    draw_in_torch,
    draw_in_triton,
    fused,
    gather_conv,
    gather_in_triton,
    launch,
    norm_in_torch,
    norm_in_triton,
)
from metalearn.kernels.gather_conv import images, planes

_calls: list[tuple[str, int, tuple[int, ...], dict[str, Any]]] = []
_fused: dict[str, fused.Fused] = {}  # by the name of the generated kernel
_library = torch.library.Library("prims", "FRAGMENT")
_library.define("launch_kernel(Tensor(a!)[] arrays, int call) -> ()")


def _run(arrays: list[Tensor], call: int) -> None:
    kernel, programs, numbers, fixed = _calls[call]
    if os.environ.get("TRITON_INTERPRET") == "1":
        launch.launch(kernel, programs, arrays, *numbers, **fixed)
    elif kernel.startswith("generated."):
        one = _fused[kernel]
        inputs, outputs = arrays[: -len(one.outputs)], arrays[-len(one.outputs) :]
        for into, value in zip(outputs, one.in_torch(*inputs), strict=True):
            into.copy_(value)
    else:
        STAND_INS[kernel.split(".")[1]](arrays, numbers, fixed)


_library.impl("launch_kernel", _run, "CPU")


def _record(
    kernel: str, programs: int, arrays: Sequence[Tensor], *numbers: int, **fixed: Any
) -> None:
    _calls.append((kernel, programs, numbers, fixed))
    torch.ops.prims.launch_kernel(list(arrays), len(_calls) - 1)


_in_triton = fused.Fused.in_triton


def _named(one: fused.Fused, *given: Tensor) -> list[Tensor]:
    _fused[f"generated.{one.name}"] = one
    return _in_triton(one, *given)


@contextmanager
def recorded_launches() -> Iterator[None]:
    """A context in which a CUDA device takes every Triton kernel, and the emulator records it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_TRITON", "1")
        patch.setattr(fused.Fused, "in_triton", _named)
        for module in (choice, draw, fusion):
            patch.setattr(module, "available", lambda: True)
        for module in (norm_in_triton, gather_in_triton, draw_in_triton, fused):
            patch.setattr(module, "launch", _record)
        yield


Numbers, Fixed = tuple[int, ...], dict[str, Any]


def _norm(function: Callable[..., tuple[Tensor, ...]], at: int, made: int) -> Callable[..., None]:
    """A stand-in for a kernel of norm.py: y is array `at`, the last `made` are written."""

    def run(arrays: list[Tensor], numbers: Numbers, fixed: Fixed) -> None:
        rows, batch, height, width, filters, *_ = numbers
        groups = rows // filters
        window = fixed["WINDOW"]
        extents = batch, height, width
        pooled = batch, height // window, width // window
        given = []
        for value in arrays[:-made]:
            if value.dim() == 2:
                given.append(value)
            else:
                places = extents if value.shape == arrays[at].shape else pooled
                given.append(images(value.reshape(groups, filters, -1), *places))
        if "TO_Y" in fixed:
            *given, to_y, to_gain = given
            sums = to_y if fixed["TO_Y"] else None, to_gain if fixed["TO_GAIN"] else None
        else:
            sums = ()
        for into, found in zip(arrays[-made:], function(*given, window, *sums), strict=True):
            found = planes(found) if found.dim() == 5 else found
            into.copy_(found.reshape(into.shape))

    return run


def _patches(arrays: list[Tensor], numbers: Numbers, fixed: Fixed) -> None:
    x = images(arrays[0].reshape(1, numbers[0], -1), *numbers[1:])
    arrays[1].copy_(gather_conv.patches(x, fixed["SIZE"], fixed["STRIDE"]).view(arrays[1].shape))


def _sum_readers(arrays: list[Tensor], numbers: Numbers, fixed: Fixed) -> None:
    parts, to, x = arrays
    (rows, *extents), size = numbers, fixed["SIZE"]
    with_zero = F.pad(parts.reshape(rows, size**2, -1), (0, 1)).reshape(1, rows, -1)
    readers = gather_conv.readers(*extents, size, fixed["STRIDE"], "cpu")
    found = with_zero.index_select(2, readers).reshape(rows, -1, x.shape[-1]).sum(1).view(x.shape)
    x.copy_(found + to if fixed["TO"] else found)


def _episode_rows(arrays: list[Tensor], numbers: Numbers, fixed: Fixed) -> None:
    first, *sizes, _ = numbers
    found = draw_in_torch.episode_rows(*arrays[:3], first, arrays[3].shape[0], *sizes)
    for into, value in zip(arrays[3:], found, strict=True):
        into.copy_(value)


STAND_INS: dict[str, Callable[[list[Tensor], Numbers, Fixed], None]] = {
    "norm_relu_pool": _norm(norm_in_torch.norm_relu_pool, 0, 3),
    "norm_relu_pool_grad": _norm(norm_in_torch.norm_relu_pool_grad, 1, 3),
    "norm_relu_pool_second": _norm(norm_in_torch.norm_relu_pool_second, 4, 3),
    "patches": _patches,
    "sum_readers": _sum_readers,
    "episode_rows": _episode_rows,
    "scaled_rows": lambda arrays, *_: arrays[3].copy_(draw_in_torch.scaled_rows(*arrays[:3])),
    "fold_in": lambda arrays, *_: arrays[2].copy_(draw_in_torch.fold_in(*arrays[:2])),
}
