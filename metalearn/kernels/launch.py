"""Triton kernels: whether Triton is available, and the launch of a kernel by its name."""

from __future__ import annotations

import functools
import importlib
import linecache
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.machine import has_triton

TILE = 1024  # numbers of an array that a program processes
WIDEST = 1024  # columns of a row that it processes
GENERATED: dict[str, str] = {}  # source of the kernels that are in no file (fused.py), by name
INTERPRETED = 1 << 16  # in Triton's interpreter, where every program runs in Python


def available() -> bool:
    """Return whether Triton kernels can run; METALEARN_TRITON is read at every call."""
    return os.environ.get("METALEARN_TRITON") != "0" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return has_triton()


def launch(
    kernel: str, programs: int, arrays: Sequence[Tensor], *numbers: int, **fixed: Any
) -> None:
    """Run a kernel, `file.function` of triton_source/ or `generated.name`, in `programs` programs.

    The arrays are contiguous; `fixed` are the arguments that it is compiled for, types by name."""
    file, name = kernel.split(".")
    types = importlib.import_module("triton.language")
    if file == "generated":
        function = _generated(name)
    else:
        function = getattr(importlib.import_module(f"metalearn.kernels.triton_source.{file}"), name)
    fixed = {k: getattr(types, v) if isinstance(v, str) else v for k, v in fixed.items()}
    if programs:
        function[(programs,)](*arrays, *numbers, **fixed)


@functools.cache
def _generated(name: str) -> Any:
    """Return a kernel of `GENERATED`; Triton reads its source from Python's line cache."""
    source, file = GENERATED[name], f"<{name}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    names = {"triton": importlib.import_module("triton"), "__name__": __name__}
    names["tl"] = importlib.import_module("triton.language")
    exec(compile(source, file, "exec"), names)
    return names[name]


def tile(rows: int, columns: int) -> tuple[int, int, int]:
    """Return (programs, rows, columns): a program has rows x columns numbers, powers of two."""
    size = INTERPRETED if os.environ.get("TRITON_INTERPRET") == "1" else TILE
    width = min(power_of_two(columns), WIDEST)
    height = max(1, min(size // width, power_of_two(rows)))
    return -(-rows // height), height, width


def power_of_two(count: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << max(count - 1, 0).bit_length()


def accumulator(dtype: torch.dtype) -> str:
    """Return the name of the type in which a kernel adds up numbers of `dtype`."""
    return "float64" if dtype == torch.float64 else "float32"
