"""User images: a folder with one folder of images for each class."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import field_validator

from metalearn import rng
from metalearn.component import option
from metalearn.errors import ConfigError, DataError, did_you_mean
from metalearn.tasks import images, store

_FORMAT = 1  # of the decoded cache: increment it with every change of decoding
_SHOWN = 10  # problems of one kind that are listed before "and n more"
# Files that desktops create in folders of images, besides names with a leading dot.
_IGNORED = ("Thumbs.db", "desktop.ini")


class Listing(NamedTuple):
    """The classes and files of a folder, sorted by name."""

    names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]


class ImageFolder(images.ImageTask):
    """Your images: a folder with one folder of images for each class.

    Every file in a class folder must be an image that Pillow reads (names with a leading dot are
    ignored). Images are rotated by their EXIF tag, put on white where they are transparent,
    converted to `channels`, and resized to size x size by Pillow's Lanczos filter without keeping
    proportions. Classes may have different numbers of images; all images are used. Decoded images
    are cached in the data folder until a name, size or time changes.

    Splits: `split_file`, JSON {"train": [class, ...], "valid": [...], "test": [...]}; else by
    `fractions` of the classes in an order drawn with `split_seed` (null: build's seed, so give
    every split of one run the same one). Without validation classes a tenth of the training classes
    is held out with the same seed. Raises ConfigError, DataError.
    """

    source: Literal["image_folder"] = option("image_folder", "The task source.")
    path: str = option(..., "The folder with one folder of images for each class.", min_length=1)
    channels: Literal[1, 3] = option(3, "1 for grey, 3 for colour.")
    size: int | None = option(
        None,
        "Height and width in pixels; null: 28 for grey, as Omniglot, and 84 for colour, as "
        "miniImageNet.",
        ge=4,
    )
    invert: bool = option(False, "Invert images of dark ink on light paper, so that ink is bright.")
    split_file: str | None = option(
        None, 'JSON file {"train": [class, ...], "valid": [...], "test": [...]}.'
    )
    fractions: tuple[float, float, float] = option(
        (0.64, 0.16, 0.20),
        "Shares of the classes for train, valid, test without a split_file; their sum is 1.",
    )
    split_seed: int | None = option(
        None,
        "Seed of the split by fractions and of the held-out tenth; null: the run's seed, which is "
        "recorded.",
        ge=0,
    )

    @field_validator("fractions")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError(f"three shares of at least 0 whose sum is 1, not {sum(value):g}")
        return value

    def resolve(self, seed: int) -> ImageFolder:
        """The task with an explicit split seed, for a resolved config."""
        return self if self.split_seed is not None else self.model_copy(update={"split_seed": seed})

    @property
    def pixels(self) -> int:
        """Height and width, with the default filled in."""
        return self.size or (28 if self.channels == 1 else 84)

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> images.ImageSource:
        """The source of one split; its `facts` hold the seed of the split."""
        if problems := images.split_problem(split):
            raise ConfigError(*problems)
        listing = list_folder(Path(self.path).expanduser())
        used = self.resolve(seed).split_seed or 0
        chosen = self.split(listing.names, used)[split]
        self._check(listing, chosen, split)
        pool, counts, digest = decoded(listing, self.pixels, self.channels, self.invert)
        starts = np.cumsum([0, *counts])
        index = {name: place for place, name in enumerate(listing.names)}
        places = [index[name] for name in chosen]
        rows = [pool[starts[place] : starts[place + 1]] for place in places]
        source = images.image_source(
            torch.from_numpy(np.concatenate(rows)),
            self,
            split=split,
            device=device,
            dtype=dtype,
            data_sha256=digest,
            counts=[counts[place] for place in places],
        )
        source.facts["split_seed"] = used
        return source

    def split(self, names: tuple[str, ...], seed: int) -> dict[str, list[str]]:
        """The classes of every split, each sorted."""
        parts = _read_split(Path(self.split_file).expanduser(), names) if self.split_file else None
        parts = parts or _split_by_fraction(names, self.fractions, seed)
        if not parts["valid"] and len(parts["train"]) > 1:
            order = _shuffled(parts["train"], seed, "image_folder held out")
            held = math.ceil(len(order) / 10)
            parts = {**parts, "valid": sorted(order[:held]), "train": sorted(order[held:])}
        return parts

    def _check(self, listing: Listing, chosen: list[str], split: str) -> None:
        sizes = {
            name: len(files)
            for name, files in zip(listing.names, listing.files, strict=True)
            if name in chosen
        }
        smallest = min(sizes, key=lambda name: sizes[name], default="")
        fewest = sizes.get(smallest, self.shots + self.queries)
        problems = images.episode_problems(
            self.ways, self.shots, self.queries, len(chosen), fewest, split, smallest=smallest
        )
        if problems:
            raise ConfigError(*problems)


def list_folder(root: Path) -> Listing:
    """The classes and image files under `root`, sorted; raises DataError with all problems."""
    if not root.is_dir():
        raise DataError(
            ("path", f"{root} is not a folder; it must hold one folder of images a class")
        )
    try:
        folders = sorted(
            item for item in root.iterdir() if item.is_dir() and not item.name.startswith(".")
        )
        contents = [_files(folder) for folder in folders]
    except OSError as error:
        raise DataError(("path", f"{root} cannot be read: {error}")) from error
    problems = []
    if len(folders) < 2:
        problems.append(
            ("path", f"{root} holds {len(folders)} class folders; a task needs at least 2")
        )
    empty = [folder.name for folder, files in zip(folders, contents, strict=True) if not files]
    if empty:
        problems.append(("path", f"{root}: class folders without images: {_some(empty)}"))
    nested = [str(item) for files in contents for item in files if item.is_dir()]
    if nested:
        problems.append(("path", f"a class folder holds images only, no folders: {_some(nested)}"))
    if problems:
        raise DataError(*problems)
    return Listing(tuple(folder.name for folder in folders), tuple(contents))


def _files(folder: Path) -> tuple[Path, ...]:
    items = (item for item in folder.iterdir() if not item.name.startswith("."))
    return tuple(sorted(item for item in items if item.name not in _IGNORED))


def image_files(root: Path) -> list[Path]:
    """All files at any depth under a folder, sorted; names with a leading dot are passed over."""
    hidden = (file for file in root.rglob("*") if file.is_file() and file.name not in _IGNORED)
    return sorted(
        file for file in hidden if not any(p.startswith(".") for p in file.relative_to(root).parts)
    )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _shuffled(names: Any, seed: int, purpose: str) -> list[str]:
    order = rng.permutation(rng.fold_in(seed, purpose), len(names)).tolist()
    return [names[place] for place in order]


def _split_by_fraction(
    names: tuple[str, ...], fractions: tuple[float, float, float], seed: int
) -> dict[str, list[str]]:
    """Shares of the shuffled classes; their bounds are rounded to whole classes."""
    order = _shuffled(names, seed, "image_folder split")
    first = round(fractions[0] * len(order))
    second = max(first, round((fractions[0] + fractions[1]) * len(order)))
    parts = (order[:first], order[first:second], order[second:])
    return {split: sorted(part) for split, part in zip(images.SPLITS, parts, strict=True)}


def _read_split(path: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """The split file, checked against the class folders; raises DataError with all problems."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(("split_file", f"{path} cannot be read as JSON: {error}")) from error
    form = 'must be {"train": [class, ...], "valid": [...], "test": [...]}'
    if not isinstance(content, dict):
        raise DataError(("split_file", f"{path} {form}"))
    problems = [
        ("split_file", f"{path}: {key!r} is no split; {did_you_mean(str(key), images.SPLITS)}")
        for key in content
        if key not in images.SPLITS
    ]
    parts = {split: content.get(split, []) for split in images.SPLITS}
    splits: dict[str, str] = {}
    for split, classes in parts.items():
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            problems.append(
                ("split_file", f"{path}: {split!r} is not a list of class names; the file {form}")
            )
            continue
        absent = sorted(set(classes) - set(names))
        if absent:
            problems.append(
                ("split_file", f"{path}: classes of {split!r} without a folder: {_some(absent)}")
            )
        for name in classes:
            if name in splits:
                text = f"{path}: class {name!r} is in {splits[name]!r} and again in {split!r}"
                problems.append(("split_file", text))
            splits[name] = split
    if problems:
        raise DataError(*problems)
    return {split: sorted(classes) for split, classes in parts.items()}


def decoded(
    listing: Listing, size: int, channels: int, invert: bool
) -> tuple[store.Array, list[int], str]:
    """All images uint8 [images, channels, size, size] by class, images of each class, SHA-256.

    Read from the cache where names, sizes and times of all files are unchanged; warns where a cache
    cannot be written. Raises DataError naming every file that is not an image.
    """
    counts = [len(files) for files in listing.files]
    path = (
        store.cache_root()
        / "image_folder"
        / f"{_listing_hash(listing, size, channels, invert)}.npz"
    )
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


def _listing_hash(listing: Listing, size: int, channels: int, invert: bool) -> str:
    content: list[Any] = [_FORMAT, size, channels, invert]
    for name, files in zip(listing.names, listing.files, strict=True):
        content.append([name, [[file.name, *_state(file)] for file in files]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int]:
    """(bytes, time of change); of a broken link (-1, -1), so that the decoder reports it."""
    try:
        state = file.stat()
    except OSError:
        return (-1, -1)
    return (state.st_size, state.st_mtime_ns)


def decode_images(files: list[Path], size: int, channels: int, invert: bool) -> store.Array:
    pool = np.empty((len(files), channels, size, size), dtype=np.uint8)
    problems = []
    for place, file in enumerate(files):
        try:
            pool[place] = _decode(file, size, channels)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            problems.append(
                (str(file), f"not an image that Pillow can read ({type(error).__name__}: {error})")
            )
    if problems:
        more = len(problems) - _SHOWN
        rest = [("path", f"and {more} more files that are not images")] if more > 0 else []
        raise DataError(*problems[:_SHOWN], *rest)
    return np.asarray(255 - pool if invert else pool)


def _decode(file: Path, size: int, channels: int) -> store.Array:
    """One image as uint8 [channels, size, size]."""
    with Image.open(file) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):  # Pillow's conversion would clip these at 255
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no standard white; save it with 8 bits")
        if image.has_transparency_data:
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, "white"), image.convert("RGBA")
            )
        image = image.convert("L" if channels == 1 else "RGB").resize(
            (size, size), Image.Resampling.LANCZOS
        )
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)
