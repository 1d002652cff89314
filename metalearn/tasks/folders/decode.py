"""Images of a folder as bytes of one size, cached by the content of the files."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from metalearn.errors import DataError
from metalearn.logger import warn_once
from metalearn.tasks import store
from metalearn.tasks.folders.listing import Listing, abbreviate

_FORMAT = 2  # of the decoded cache: increment it with every change of decoding
_SHOWN = 10  # unreadable files that are listed before "and n more"


def load_images(
    listing: Listing, size: int, channels: int, invert: bool
) -> tuple[store.Array, list[int], str]:
    """Return all images, uint8 [images, channels, size, size] by class, images per class, SHA-256.

    Read from the cache if names and contents of all files are the same; warns if the cache
    cannot be written. Raises DataError naming every file that is not an image.
    """
    counts = [len(files) for files in listing.files]
    _warn_of_copies(listing)
    key = _content_hash(listing, size, channels, invert)
    path = store.cache_root() / "image_folder" / f"{key}.npz"
    if path.exists():
        cached = store.load_npz(path)
        return cached["images"], counts, str(cached["sha256"])
    files = [file for group in listing.files for file in group]
    pool = decode_images(files, size, channels, invert)
    digest = store.sha256_of_arrays(np.array(listing.names), np.array(counts), pool)
    try:
        store.write_npz(path, {"images": pool, "sha256": np.array(digest)})
    except OSError as error:
        warnings.warn(f"decoded images are not cached: {error}", stacklevel=2)
    return pool, counts, digest


def _content_hash(listing: Listing, size: int, channels: int, invert: bool) -> str:
    content: list[Any] = [_FORMAT, size, channels, invert]
    for name, files in zip(listing.names, listing.files, strict=True):
        content.append([name, [[file.name, _file_hash(file)] for file in files]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _warn_of_copies(listing: Listing) -> None:
    """Warn once of equal files in two classes and within a class."""
    first: dict[str, tuple[str, Path]] = {}
    across, within = list[str](), list[str]()
    for name, files in zip(listing.names, listing.files, strict=True):
        for file in files:
            first_name, first_file = first.setdefault(_file_hash(file) or str(file), (name, file))
            if first_file != file:
                (within if first_name == name else across).append(f"{first_file} and {file}")
    if across:
        text = "equal images are in two classes (one of which is wrong) and possibly in two splits"
        warn_once(f"path: {text}: {abbreviate(across)}")
    if within:
        text = "equal images are in one class, so a query may equal a support image"
        warn_once(f"path: {text}: {abbreviate(within)}")


def _file_hash(file: Path) -> str:
    """SHA-256 of a file; empty for one that cannot be read, so that the decoder reports it."""
    try:
        state = file.stat()
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        return _cached_hash(str(file), identity)
    except OSError:
        return ""


@lru_cache(maxsize=1 << 20)
def _cached_hash(path: str, identity: tuple[int, ...]) -> str:
    """Hash a file once per process: every write changes its time of change (ctime)."""
    del identity
    return store.sha256_of_file(Path(path))


def decode_images(files: Sequence[Path], size: int, channels: int, invert: bool) -> store.Array:
    """Return uint8 [files, channels, size, size]; raises DataError with all unreadable files."""
    pool = np.empty((len(files), channels, size, size), dtype=np.uint8)
    problems = []
    for index, file in enumerate(files):
        try:
            pool[index] = decode_image(file, size, channels)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            problems.append(
                (str(file), f"not an image that Pillow can read ({type(error).__name__}: {error})")
            )
    if problems:
        more = len(problems) - _SHOWN
        summary = [("path", f"and {more} more files that are not images")] if more > 0 else []
        raise DataError(*problems[:_SHOWN], *summary)
    return np.asarray(255 - pool if invert else pool)


def decode_image(file: Path | IO[bytes], size: int, channels: int) -> store.Array:
    """Return one image as uint8 [channels, size, size]."""
    with Image.open(file) as opened:
        if getattr(opened, "is_animated", False):
            warn_once("path: some images hold several frames, of which the first is used")
        image = standard(opened)
        image = image.convert("L" if channels == 1 else "RGB").resize(
            (size, size), Image.Resampling.LANCZOS
        )
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)


def standard(image: Image.Image) -> Image.Image:
    """Return the image upright by its EXIF tag, of 8 bits, and on white if it is transparent.

    Raises ValueError for pixels of 32 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's conversion would clip these at 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no standard range; save it with 8 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image
