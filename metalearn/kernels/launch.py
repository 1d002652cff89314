"""Triton kernels: whether there is Triton, and a launch of a kernel by its name."""

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

TILE = 1024  # numbers that a program holds of an array
WIDEST = 1024  # places of a row that it holds
GENERATED: dict[str, str] = {}  # source of the kernels that are in no file (fused.py), by name
INTERPRETED = 1 << 16  # in Triton's interpreter, where every program costs a walk through Python


def available() -> bool:
    """Whether kernels run by Triton; METALEARN_TRITON is read at every call."""
    return os.environ.get("METALEARN_TRITON") != "0" and _found()


@functools.cache
def _found() -> bool:
    return has_triton()


def launch(
    kernel: str, programs: int, arrays: Sequence[Tensor], *numbers: int, **fixed: Any
) -> None:
    """Run a kernel, `file.function` of triton_source/ or `generated.name`, as so many programs.

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
    """A kernel of `GENERATED`; Triton reads its source where Python keeps the lines of files."""
    source, file = GENERATED[name], f"<{name}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    names = {"triton": importlib.import_module("triton"), "__name__": __name__}
    names["tl"] = importlib.import_module("triton.language")
    exec(compile(source, file, "exec"), names)
    return names[name]


def tile(rows: int, places: int) -> tuple[int, int, int]:
    """(programs, rows, places) such that a program holds rows x places numbers, powers of two."""
    size = INTERPRETED if os.environ.get("TRITON_INTERPRET") == "1" else TILE
    wide = min(power_of_two(places), WIDEST)
    high = max(1, min(size // wide, power_of_two(rows)))
    return -(-rows // high), high, wide


def power_of_two(count: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(count - 1, 0).bit_length()


def accumulator(dtype: torch.dtype) -> str:
    """The name of the type in which a kernel adds up numbers of a type."""
    return "float64" if dtype == torch.float64 else "float32"
