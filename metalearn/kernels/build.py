"""C++ beside Python: a source file built once a machine with its own compiler, kept, and loaded
through ctypes.

Without a compiler, or with METALEARN_NATIVE=0, nothing is built, and callers go another way.
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
    """Where built libraries are kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "metalearn" / "native"


def load(source: Path, *headers: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """(the library made of `source`, which includes `headers`, None), or (None, why there is none:
    a sentence).
    """
    if os.environ.get("METALEARN_NATIVE", "1") == "0":
        return None, "switched off by METALEARN_NATIVE=0"
    made_by = compiler()
    if made_by is None:
        return None, "no C++ compiler was found (g++ or clang++)"
    try:
        return ctypes.CDLL(str(_built(source, headers, made_by))), None
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return (
            None,
            f"{made_by} could not build it: "
            f"{said.strip().splitlines()[-1] if said.strip() else error}",
        )


def _built(source: Path, headers: tuple[Path, ...], made_by: str) -> Path:
    """The library for this source, compiler and processor; built beside its place and renamed, so
    never half there.
    """
    texts = (path.read_text() for path in (source, *headers))
    told = "\n".join((*texts, made_by, *FLAGS, platform.machine(), _processor()))
    path = folder() / f"{source.stem}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
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
    """What -march=native depends on: the processor's features, where the system says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )
