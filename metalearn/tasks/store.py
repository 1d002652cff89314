"""Locations of data sets; reading, writing, checking and downloading of prepared files.

Nothing is unpickled, and no archive is unpacked to disk. Prepared files are expected in
METALEARN_DATA (else ~/.cache/metalearn). Derived files (decoded folders, rendered letters) are
cached next to them, or in ~/.cache/metalearn if METALEARN_DATA is read-only."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metalearn.errors import DataError
from metalearn.storage.files import UNREADABLE

Array = npt.NDArray[Any]
_MEMBER_BYTES = 1 << 20  # largest member of an archive: a hundred times the size of a drawing


class DataSet(NamedTuple):
    """A data set that is prepared before its first use, or on it."""

    sentence: str
    files: str  # pattern of its prepared files
    absent: str  # message if they are missing
    on_use: bool  # whether the first use prepares it
    prepare: Callable[[], list[str]]  # lines for the user; raises ConfigError
    verify: Callable[[], list[str]]

    def prepared(self) -> list[Path]:
        """Return its existing files."""
        return sorted({*data_root().glob(self.files), *cache_root().glob(self.files)})


def data_root() -> Path:
    """The folder of prepared data sets: METALEARN_DATA, else ~/.cache/metalearn."""
    folder = os.environ.get("METALEARN_DATA", "").strip()
    return Path(folder).expanduser() if folder else _home_cache()


def cache_root() -> Path:
    """The folder for derived files: the data folder, unless it is read-only."""
    root = data_root()
    return root if _writable(root) else _home_cache()


def _home_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metalearn"


def _writable(folder: Path) -> bool:
    """Return whether files may be created there; False without any write bit, also for root."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK) and bool(
        folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    )


def missing(file: str, name: str) -> DataError:
    """Return the error for a missing prepared file: its path, and the command that makes it."""
    unset = "" if os.environ.get("METALEARN_DATA", "").strip() else " is not set"
    text = (
        f"{file} is missing: expected in {data_root()} (METALEARN_DATA{unset}). Run "
        f"`metalearn data prepare {name}`, or set METALEARN_DATA to the folder that contains {file}"
    )
    return DataError(("source", text))


def load_npz(path: Path) -> Mapping[str, Array]:
    """Return all arrays of a prepared file, cached until it changes; raises DataError."""
    try:
        state = path.stat()
        return _load(str(path), state.st_mtime_ns, state.st_size)
    except UNREADABLE as error:
        text = f"cannot be read as a prepared data set: {error}; prepare it again"
        raise DataError((str(path), text)) from error


@lru_cache(maxsize=4)
def _load(path: str, modified: int, size: int) -> Mapping[str, Array]:
    del modified, size  # part of the cache's key only
    with (
        open(path, "rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):  # numpy leaves a broken file open
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
    for array in arrays.values():
        array.flags.writeable = False  # shared by every source of this process
    return arrays


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a compressed archive atomically; raises OSError."""
    handle, temporary = _temporary_beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary_beside(path: Path) -> tuple[int, Path]:
    """An open file in the folder of `path`, to be renamed to it when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    return handle, Path(name)


def unwritable(path: Path, error: OSError) -> DataError:
    """The error for a prepared file that cannot be written."""
    text = f"cannot be written ({error}); set METALEARN_DATA to a folder that can be written to"
    return DataError((str(path), text))


def sha256_of_arrays(*arrays: Array) -> str:
    """SHA-256 over the bytes of arrays in C order, whatever the compression of their file."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def sha256_of_text(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_id(path: Path) -> str:
    """Git's blob id of a file: SHA-1 over "blob <bytes>", a zero byte and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def archive_members(path: Path, suffix: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """(name, content) of the files in a zip that end with `suffix`, sorted by name, read in memory.

    Raises DataError, also for names that lead out of the archive and for members above 1 MiB."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                name = PurePosixPath(info.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
                    text = f"contains the name {info.filename!r}, which points outside the archive"
                    raise DataError((str(path), text))
                if info.is_dir() or name.suffix != suffix or "__MACOSX" in name.parts:
                    continue
                if info.file_size > _MEMBER_BYTES:
                    text = f"{info.filename!r} unpacks to {info.file_size} bytes; at most 1 MiB"
                    raise DataError((str(path), text))
                yield name, archive.read(info)
    except DataError:
        raise
    except UNREADABLE as error:
        text = f"cannot be read as a zip archive: {error}; fetch it again"
        raise DataError((str(path), text)) from error


def download(
    url: str, path: Path, expected: str, digest: Callable[[Path], str] = git_blob_id
) -> None:
    """Download one file over https; raises DataError unless its `digest` is the expected one."""
    if not url.startswith("https://"):
        raise DataError((url, "only https is supported"))
    try:
        handle, temporary = _temporary_beside(path)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=60) as response:
            while block := response.read(1 << 20):
                file.write(block)
        actual = digest(temporary)
        if actual != expected:
            kind = digest.__name__.replace("_", " ")
            text = (
                f"the download from {url} has {kind} {actual}, must be {expected}; it was discarded"
            )
            raise DataError((path.name, text))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        remedy = f"fetch it on another machine and put it in {path.parent}"
        text = f"could not be fetched from {url} ({reason}); {remedy}"
        raise DataError((path.name, text)) from error
    finally:
        temporary.unlink(missing_ok=True)
