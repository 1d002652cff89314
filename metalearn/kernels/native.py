"""The compiled half of kernels/: conv.cpp's one function and norm_relu_pool.cpp's.

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
    """Both, built and loaded at the first call, or None where it cannot be; `why_not` says why."""
    global _loaded, _why_not
    if _loaded is None and _why_not == "not loaded yet":
        _loaded, _why_not = _load()
    return _loaded


def why_not() -> str | None:
    """Why there is no kernel: a sentence, or None where there is one."""
    kernel()
    return _why_not


def _load() -> tuple[Kernel | None, str | None]:
    functions = []
    for name, what in (
        ("conv.cpp", "metalearn_convolution"),
        ("norm_relu_pool.cpp", "metalearn_norm_relu_pool"),
    ):
        library, why = load(HERE / name, HERE / "lanes.h")
        if library is None:
            return None, why
        functions.append(getattr(library, what))
    convolution, norm_relu_pool = functions
    number, whole, place = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    convolution.argtypes = [whole, whole, place, place, place, *[number] * 9, whole]
    norm_relu_pool.argtypes = [whole, whole, place, *[number] * 6, whole]
    convolution.restype = norm_relu_pool.restype = None
    return Kernel(convolution, norm_relu_pool), None


def usable(x: torch.Tensor) -> bool:
    """Whether the operators of this package take a tensor.

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
    """x contiguous, for the compiled functions; on CUDA as it is, for every order of memory."""
    return x if x.is_cuda else x.contiguous()
