"""Images of an archive, decoded in memory: nothing is unpacked to disk."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from metalearn.errors import DataError
from metalearn.storage.files import UNREADABLE
from metalearn.tasks import store
from metalearn.tasks.folders.decode import decode_image

_MEMBER_BYTES = 1 << 25  # largest image of an archive: 32 MiB
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def find_class(parents: tuple[str, ...], file: str, names: set[str]) -> str | None:
    """Return the class of a file: the innermost folder of that name, else its name's prefix."""
    for folder in reversed(parents):
        if folder in names:
            return folder
    front = file[:9]  # a WordNet id: n01532829_1.JPEG, n0153282900000005.jpg
    return front if front in names else None


def is_archive(path: Path) -> bool:
    """Return whether the file is an archive: .zip, .tar, .tgz or .tar.gz."""
    return path.is_file() and path.name.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz"))


def load_archive(
    path: Path, names: tuple[str, ...], size: int
) -> tuple[store.Array, list[int], str]:
    """uint8 [images, 3, size, size] of the classes `names`, images of each, SHA-256.

    Cached by the archive's SHA-256. Raises DataError."""
    archive = store.sha256_of_file(path)
    key = store.sha256_of_text(json.dumps([archive, names, size]))
    cache = store.cache_root() / "archives" / f"{key}.npz"
    if cache.exists():
        cached = store.load_npz(cache)
        return cached["images"], cached["counts"].tolist(), str(cached["sha256"])
    class_names, groups = set(names), {name: dict[str, store.Array]() for name in names}
    for member, content in _members(path):
        name = find_class(member.parts[:-1], member.name, class_names)
        if name is not None:
            groups[name][str(member)] = _decode_member(path, str(member), content, size)
    counts = [len(groups[name]) for name in names]
    images = [image for name in names for _, image in sorted(groups[name].items())]
    pool = np.stack(images) if images else np.zeros((0, 3, size, size), np.uint8)
    digest = store.sha256_of_arrays(np.array(names), np.array(counts), pool)
    arrays = {"images": pool, "counts": np.array(counts), "sha256": np.array(digest)}
    try:
        store.write_npz(cache, arrays)
    except OSError as error:
        warnings.warn(f"decoded images are not cached: {error}", stacklevel=2)
    return pool, counts, digest


def _decode_member(path: Path, member: str, content: bytes, size: int) -> store.Array:
    try:
        return decode_image(io.BytesIO(content), size, 3)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError((str(path), f"{member}: not a readable image ({error})")) from error


def _members(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (name, content) of the images in an archive, in its order."""
    opened = _zip_members if path.name.lower().endswith(".zip") else _tar_members
    try:
        for name, length, read_content in opened(path):
            member = PurePosixPath(name)
            if member.suffix.lower() not in SUFFIXES or "__MACOSX" in member.parts:
                continue
            if length > _MEMBER_BYTES:
                raise DataError((str(path), f"{name!r} unpacks to {length} bytes; at most 32 MiB"))
            yield member, read_content()
    except DataError:
        raise
    except (*UNREADABLE, tarfile.TarError) as error:
        raise DataError((str(path), f"cannot be read as an archive: {error}")) from error


def _zip_members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, info.file_size, partial(archive.read, info)


def _tar_members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isfile() and (file := archive.extractfile(info)) is not None:
                yield info.name, info.size, file.read
