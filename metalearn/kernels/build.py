"""C++ operators: each source file is compiled once a machine, cached, and loaded through ctypes.

Without a compiler, or with METALEARN_NATIVE=0, nothing is built, and callers use torch's operators.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c++17",
)


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++, the first that is there."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def folder() -> Path:
    """The cache of built libraries."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "metalearn" / "native"


def load(source: Path, *headers: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """(the library of `source`, which includes `headers`, and None), or (None and the reason)."""
    if os.environ.get("METALEARN_NATIVE", "1") == "0":
        return None, "disabled by METALEARN_NATIVE=0"
    made_by = compiler()
    if made_by is None:
        return None, "no C++ compiler was found (g++ or clang++)"
    try:
        return ctypes.CDLL(str(_built(source, headers, made_by))), None
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return None, f"{made_by} could not build it: {lines[-1] if lines else error}"


def _built(source: Path, headers: tuple[Path, ...], made_by: str) -> Path:
    """The library for this source, compiler and processor; built beside its place and renamed, so
    that it is never incomplete.
    """
    texts = (path.read_text() for path in (source, *headers))
    inputs = "\n".join((*texts, made_by, *FLAGS, platform.machine(), _processor()))
    path = folder() / f"{source.stem}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        subprocess.run(
            [made_by, *FLAGS, "-o", draft, str(source)],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path


def _processor() -> str:
    """What -march=native depends on: the processor's features, where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )
