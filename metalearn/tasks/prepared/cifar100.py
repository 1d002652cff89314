"""CIFAR-100 (Krizhevsky 2009): 100 classes of 600 colour images, 32x32.

Two files serve. `cifar100.npz` has the published pixels and is made from the publisher's archive;
`cifar100_jpeg95.npz` has JPEG copies of quality 95, and is read if the first is missing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalearn.errors import DataError
from metalearn.storage.files import UNREADABLE
from metalearn.tasks import store
from metalearn.tasks.prepared.file import PreparedFile

CLASSES, SIZE = 100, 32
ARCHIVE = "cifar-100-binary.tar.gz"
PUBLISHER = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE_SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
RECORD = 2 + 3 * SIZE * SIZE  # superclass, class, then red, green and blue planes
ORIGIN = f"`metalearn data prepare cifar100` makes cifar100.npz of the publisher's {ARCHIVE}"
PIXELS = PreparedFile(
    source="cifar100",
    file="cifar100.npz",
    sha256="",
    arrays={
        "images": ((CLASSES, None, SIZE, SIZE, 3), "uint8"),
        "fine_name": ((CLASSES,), None),
    },
    origin=ORIGIN,
)
JPEG = PreparedFile(
    source="cifar100",
    file="cifar100_jpeg95.npz",
    sha256="32340dd0e826c86582abca2508c1b99e6a0be62e3f6b93e9001fe674539e5211",
    arrays={
        "jpeg_header": ((None,), "uint8"),
        "jpeg_body": ((None,), "uint8"),
        "offsets": ((None,), "int64"),
        "label": ((None,), "uint8"),
        "fine_name": ((CLASSES,), None),
    },
    origin=ORIGIN,
)


def stored_file() -> PreparedFile:
    """Return the file that is read: published pixels, else JPEG copies."""
    has_pixels = (store.data_root() / PIXELS.file).exists()
    return PIXELS if has_pixels or not (store.data_root() / JPEG.file).exists() else JPEG


def class_numbers(names: Sequence[str]) -> tuple[int, ...]:
    """Return the rows of the classes `names`, in order; raises DataError if one is missing."""
    file = stored_file()
    row = {str(name): number for number, name in enumerate(file.load()["fine_name"])}
    absent = [name for name in names if name not in row]
    if absent:
        text = f"has no classes {', '.join(absent)}: it is not CIFAR-100"
        raise DataError((str(store.data_root() / file.file), text))
    return tuple(row[name] for name in names)


def images_of(classes: tuple[int, ...]) -> Tensor:
    """Return uint8 [classes, images, 3, 32, 32], decoded once per process."""
    file = stored_file()
    return _images_of(file.file, file.data_sha256(), classes)


@lru_cache(maxsize=6)
def _images_of(file: str, digest: str, classes: tuple[int, ...]) -> Tensor:
    del digest  # part of the cache's key only
    data = stored_file().load()
    class_images = (
        data["images"][n] if file == PIXELS.file else _decode_class(data, n) for n in classes
    )
    stacked = np.stack([np.moveaxis(images, -1, 1) for images in class_images])
    return torch.from_numpy(np.ascontiguousarray(stacked))


def _decode_class(data: Mapping[str, store.Array], number: int) -> store.Array:
    """Decode the images of one class: uint8 [images, 32, 32, 3]."""
    header, body, offsets = (data[name] for name in ("jpeg_header", "jpeg_body", "offsets"))
    start = header.tobytes()
    decoded = []
    for image in np.flatnonzero(data["label"] == number):
        content = start + body[offsets[image] : offsets[image + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
                decoded.append(np.asarray(opened.convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError((JPEG.file, f"image {image} is not readable ({error})")) from error
    return np.stack(decoded)


def first_copies(parts: Sequence[tuple[int, ...]]) -> list[store.Array]:
    """Mark the images of each part that no later part contains: bool [classes, images].

    CIFAR-100 has 26 groups of equal images, 17 of them across classes."""
    later: set[bytes] = set()
    masks: list[store.Array] = []
    for classes in reversed(parts):
        images = images_of(classes).numpy()
        contents = [[image.tobytes() for image in of_class] for of_class in images]
        masks.append(np.array([[image not in later for image in row] for row in contents]))
        later.update(image for row in contents for image in row)
    return masks[::-1]


def prepare() -> list[str]:
    """Make cifar100.npz from the publisher's archive, which is downloaded if it is missing."""
    target = store.data_root() / PIXELS.file
    if target.exists():
        return [f"{target} is already there; nothing was fetched", *verify()]
    archive, lines = store.data_root() / ARCHIVE, []
    if not archive.exists():
        store.download(PUBLISHER + ARCHIVE, archive, ARCHIVE_SHA256, store.sha256_of_file)
        lines.append(f"fetched {archive}")
    digest = store.sha256_of_file(archive)
    if digest != ARCHIVE_SHA256:
        text = f"has sha256 {digest}, must be {ARCHIVE_SHA256}; move it away and prepare again"
        raise DataError((str(archive), text))
    try:
        store.write_npz(target, read_archive(archive))
    except OSError as error:
        raise store.unwritable(target, error) from error
    return [*lines, f"wrote {target}", *verify()]


def read_archive(path: Path) -> dict[str, store.Array]:
    """`images` [100, 600, 32, 32, 3], in each class first the training images, and `fine_name`."""
    try:
        with tarfile.open(path) as archive:
            parts = [_member(archive, name) for name in ("train.bin", "test.bin")]
            names = _member(archive, "fine_label_names.txt").decode("ascii").split()
    except (*UNREADABLE, tarfile.TarError, KeyError) as error:
        raise DataError((str(path), f"cannot be read: {error}; fetch it again")) from error
    records = np.concatenate([np.frombuffer(part, np.uint8).reshape(-1, RECORD) for part in parts])
    order = np.argsort(records[:, 1], kind="stable")
    pixels = records[order, 2:].reshape(CLASSES, -1, 3, SIZE, SIZE).transpose(0, 1, 3, 4, 2)
    return {"images": np.ascontiguousarray(pixels), "fine_name": np.array(names)}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"cifar-100-binary/{name}")
    if file is None:
        raise KeyError(f"no file {name}")
    return file.read()


def verify() -> list[str]:
    """Return lines for the user; raises DataError unless the file is the expected one."""
    file = stored_file()
    if file is JPEG:
        copies = "JPEG copies of quality 95, mean error 1.95 of 255"
        return [*JPEG.verify(), f"{copies}; {ORIGIN}, with the published pixels"]
    images = file.load()["images"]
    if images.shape[1] != 600:
        text = f"has {images.shape[1]} images per class, must be 600; prepare it again"
        raise DataError((str(store.data_root() / file.file), text))
    return [f"{store.data_root() / file.file}: 100 classes of 600 images, pixels as published"]


DATA_SET = store.DataSet(
    "CIFAR-100, 100 classes of 600 colour images, for cifar_fs and fc100",
    "cifar100*.npz",
    f"not there; {ORIGIN}",
    False,
    prepare,
    verify,
)
