"""C++ operators: each source file is compiled once per machine, cached, and loaded by ctypes.

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
    """Return the path of the C++ compiler: the first of $CXX, g++ and clang++ that exists."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def folder() -> Path:
    """Return the cache folder of compiled libraries."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "metalearn" / "native"


def load(source: Path, *headers: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """Return (the library of `source`, which includes `headers`; None), or (None, the reason)."""
    if os.environ.get("METALEARN_NATIVE", "1") == "0":
        return None, "disabled by METALEARN_NATIVE=0"
    compiler_path = compiler()
    if compiler_path is None:
        return None, "no C++ compiler was found (g++ or clang++)"
    try:
        return ctypes.CDLL(str(_build(source, headers, compiler_path))), None
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return None, f"{compiler_path} could not build it: {lines[-1] if lines else error}"


def _build(source: Path, headers: tuple[Path, ...], compiler_path: str) -> Path:
    """Return the library for this source, compiler and processor.

    It is compiled to a temporary file and renamed, so that it is never incomplete."""
    contents = (path.read_text() for path in (source, *headers))
    inputs = "\n".join((*contents, compiler_path, *FLAGS, platform.machine(), _processor()))
    library = folder() / f"{source.stem}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(descriptor)
    try:
        subprocess.run(
            [compiler_path, *FLAGS, "-o", temporary, str(source)],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
        os.replace(temporary, library)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return library


def _processor() -> str:
    """Return what -march=native depends on: the processor's features, if the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )
