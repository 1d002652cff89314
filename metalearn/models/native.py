"""The compiled half of models/: conv.cpp, built once a machine with its own C++ compiler and loaded through ctypes.

Without a compiler, or with METALEARN_NATIVE=0, everything runs through torch's own convolution, slower
and equal up to rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("conv.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-std=c++17")


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++, the first that is there."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def folder() -> Path:
    """Where built libraries are kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "metalearn" / "native"


_loaded: Callable[..., None] | None = None
_why_not: str | None = "not asked for yet"


def kernel() -> Callable[..., None] | None:
    """conv.cpp's function, built and loaded at the first call, or None where it cannot be; `why_not` says why."""
    global _loaded, _why_not
    if _loaded is None and _why_not == "not asked for yet":
        _loaded, _why_not = _load()
    return _loaded


def why_not() -> str | None:
    """Why there is no kernel: a sentence, or None where there is one."""
    kernel()
    return _why_not


def _load() -> tuple[Callable[..., None] | None, str | None]:
    if os.environ.get("METALEARN_NATIVE", "1") == "0":
        return None, "switched off by METALEARN_NATIVE=0"
    made_by = compiler()
    if made_by is None:
        return None, "no C++ compiler was found (g++ or clang++)"
    try:
        library = ctypes.CDLL(str(_built(made_by)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return None, f"{made_by} could not build it: {said.strip().splitlines()[-1] if said.strip() else error}"
    function = library.metalearn_convolution
    number, whole, place = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    function.argtypes = [whole, whole, place, place, place, *[number] * 9, whole]
    function.restype = None
    return function, None


def _built(made_by: str) -> Path:
    """The library for this source, compiler and processor; built beside its place and renamed, so never half there."""
    told = "\n".join((SOURCE.read_text(), made_by, *FLAGS, platform.machine(), _processor()))
    path = folder() / f"conv-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        subprocess.run(
            [made_by, *FLAGS, "-o", draft, str(SOURCE)], check=True, capture_output=True, text=True, timeout=300
        )
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path


def _processor() -> str:
    """What -march=native depends on: the processor's features, where the system says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def usable(x: torch.Tensor) -> bool:
    """Whether the kernel takes this tensor: on a CPU, float32 or float64; `kernel` was called before and found it."""
    return _loaded is not None and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
