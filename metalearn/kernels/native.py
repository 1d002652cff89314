"""The compiled functions of kernels/: one of conv.cpp and one of norm_relu_pool.cpp.

Without a compiler, or with METALEARN_NATIVE=0, everything runs through torch's own operators,
slower and equal up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from metalearn.kernels.build import compiler as compiler
from metalearn.kernels.build import load
from metalearn.machine import own_kernels

HERE = Path(__file__).parent
TYPES = (torch.float32, torch.float64)  # of the compiled functions


class Kernel(NamedTuple):
    """The compiled functions."""

    convolution: Callable[..., None]
    norm_relu_pool: Callable[..., None]


_loaded: Kernel | None = None
_why_not: str | None = "not loaded yet"


def kernel() -> Kernel | None:
    """Return both, built and loaded at the first call, or None; `why_not` returns the reason."""
    global _loaded, _why_not
    if _loaded is None and _why_not == "not loaded yet":
        _loaded, _why_not = _load()
    return _loaded


def why_not() -> str | None:
    """Return the reason if the compiled functions are unavailable, else None."""
    kernel()
    return _why_not


def _load() -> tuple[Kernel | None, str | None]:
    functions = []
    for name, symbol in (
        ("conv.cpp", "metalearn_convolution"),
        ("norm_relu_pool.cpp", "metalearn_norm_relu_pool"),
    ):
        library, reason = load(HERE / name, HERE / "lanes.h")
        if library is None:
            return None, reason
        functions.append(getattr(library, symbol))
    convolution, norm_relu_pool = functions
    int64, int32, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    convolution.argtypes = [int32, int32, pointer, pointer, pointer, *[int64] * 9, int32]
    norm_relu_pool.argtypes = [int32, int32, pointer, *[int64] * 6, int32]
    convolution.restype = norm_relu_pool.restype = None
    return Kernel(convolution, norm_relu_pool), None


def usable(x: torch.Tensor) -> bool:
    """Return whether the operators of this package accept a tensor.

    On a CPU float32 or float64, where `kernel` was called before and found the compiled functions;
    on CUDA every floating-point type, unless METALEARN_CUDA_KERNELS=0. What is exported consists of
    torch's operators alone.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    if tracing or torch.compiler.is_exporting():
        return False
    if x.device.type == "cuda":
        return x.is_floating_point() and own_kernels()
    return _loaded is not None and x.device.type == "cpu" and x.dtype in TYPES


def in_order(x: torch.Tensor) -> torch.Tensor:
    """Return x contiguous for the compiled functions, and unchanged on CUDA."""
    return x if x.is_cuda else x.contiguous()
