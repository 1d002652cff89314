"""Split the classes of a folder, or their images, into train, valid and test."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn import rng
from metalearn.errors import DataError, did_you_mean
from metalearn.tasks.folders.listing import SPLIT_NAMES, Listing, abbreviate, nfc
from metalearn.tasks.images import SPLITS

Fractions = tuple[float, float, float]
Problems = list[tuple[str, str]]
BY_FOLDER = "by the folders or the column of splits"
HELD_OUT = "a tenth of those of training is held out for validation, drawn with split_seed"


class Selection(NamedTuple):
    """The part of a folder that one split uses."""

    names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]


def select(
    listing: Listing, parts: dict[str, list[str]], split: str, same: Sequence[Sequence[str]] | None
) -> Selection:
    """Return the classes of a split with their files.

    All files, or with `same` those whose entry there (as in `Listing.splits`) is the split."""
    index = {name: number for number, name in enumerate(listing.names)}
    files = []
    for name in parts[split]:
        class_files = listing.files[index[name]]
        if same is not None:
            class_splits = same[index[name]]
            class_files = tuple(
                file for file, part in zip(class_files, class_splits, strict=True) if part == split
            )
        files.append(class_files)
    return Selection(tuple(parts[split]), tuple(files))


def split_classes(
    listing: Listing, split_file: Path | None, fractions: Fractions, seed: int
) -> dict[str, list[str]]:
    """Return the sorted classes of every split: from a file, the folder itself, or fractions."""
    parts, _ = _given_split(listing, split_file, fractions, seed)
    if _holds_out(parts):
        order = shuffle(parts["train"], seed, "image_folder held out")
        count = math.ceil(len(order) / 10)
        parts = {**parts, "valid": sorted(order[:count]), "train": sorted(order[count:])}
    return parts


def describe_split(
    listing: Listing, split_file: Path | None, fractions: Fractions, seed: int, same_classes: bool
) -> str:
    """Return by what rule `split_classes` splits classes; with `same_classes` `split_images`."""
    if same_classes:
        images = f"images of each class {_by_fractions(fractions, seed)}"
        return images if listing.splits is None else f"images {BY_FOLDER}"
    parts, rule = _given_split(listing, split_file, fractions, seed)
    return f"{rule}; {HELD_OUT} {seed}" if _holds_out(parts) else rule


def _given_split(
    listing: Listing, split_file: Path | None, fractions: Fractions, seed: int
) -> tuple[dict[str, list[str]], str]:
    """Return (the classes of every split, perhaps without validation classes; by what rule)."""
    if split_file is not None:
        return read_split(split_file, listing.names), f"by the file {split_file.name}"
    if listing.splits is not None:
        return _by_folder(listing), BY_FOLDER
    rule = _by_fractions(fractions, seed)
    return split_by_fraction(listing.names, fractions, seed), rule


def _by_fractions(fractions: Fractions, seed: int) -> str:
    shares = ", ".join(f"{share:g}" for share in fractions)
    return f"by fractions {shares} (train, valid, test) in an order drawn with split_seed {seed}"


def _holds_out(parts: dict[str, list[str]]) -> bool:
    """Return whether a tenth of the training classes is held out for validation."""
    return not parts["valid"] and len(parts["train"]) > 1


def split_images(listing: Listing, fractions: Fractions, seed: int) -> list[list[str]]:
    """Return a split for every file of every class; all classes are in all splits.

    From the folder, else by fractions of each class in an order sampled with `seed`."""
    if listing.splits is not None:
        return [list(splits) for splits in listing.splits]
    file_splits = []
    for name, files in zip(listing.names, listing.files, strict=True):
        names = [str(number) for number in range(len(files))]
        parts = split_by_fraction(names, fractions, seed, f"image_folder images {name}")
        split_of = {number: split for split, part in parts.items() for number in part}
        file_splits.append([split_of[number] for number in names])
    return file_splits


def _by_folder(listing: Listing) -> dict[str, list[str]]:
    assert listing.splits is not None
    class_splits = {
        name: set(splits) for name, splits in zip(listing.names, listing.splits, strict=True)
    }
    if mixed := [name for name, splits in class_splits.items() if len(splits) > 1]:
        text = (
            f"classes are in more than one split: {abbreviate(mixed)}: new tasks need new classes"
        )
        hint = "set same_classes: true for new images of the same classes"
        raise DataError(("path", f"{text}, or {hint}"))
    return {
        split: sorted(name for name in class_splits if split in class_splits[name])
        for split in SPLITS
    }


def shuffle(names: Any, seed: int, purpose: str) -> list[str]:
    order = rng.permutation(rng.fold_in(seed, purpose), len(names)).tolist()
    return [names[index] for index in order]


def split_by_fraction(
    names: Sequence[str], fractions: Fractions, seed: int, purpose: str = "image_folder split"
) -> dict[str, list[str]]:
    """Return fractions of the shuffled classes, rounded to whole classes."""
    order = shuffle(names, seed, purpose)
    first = round(fractions[0] * len(order))
    second = max(first, round((fractions[0] + fractions[1]) * len(order)))
    parts = (order[:first], order[first:second], order[second:])
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def read_split(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Read the split file and check it against the classes; raises DataError with all problems.

    Any encoding of JSON, with or without a byte order mark, and any Unicode form of names. The
    name of a group of two levels means all of its classes."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(("split_file", f"{path} cannot be read as JSON: {error}")) from error
    form = 'must be {"train": [class, ...], "valid": [...], "test": [...]}'
    if not isinstance(content, dict):
        raise DataError(("split_file", f"{path} {form}"))
    lists, problems = _by_split(content, path)
    parts: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for split in SPLITS:
        classes = lists.get(split, [])
        parts[split] = []
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            text = f"{path}: {split!r} is not a list of class names; the file {form}"
            problems.append(("split_file", text))
            continue
        parts[split], absent = _resolve_classes([nfc(name) for name in classes], names)
        if absent:
            text = f"{path}: classes of {split!r} without a folder: {abbreviate(absent)}"
            problems.append(("split_file", text))
        for name in parts[split]:
            if name in splits:
                text = f"{path}: class {name!r} is in {splits[name]!r} and again in {split!r}"
                problems.append(("split_file", text))
            splits[name] = split
    if problems:
        raise DataError(*problems)
    return {split: sorted(classes) for split, classes in parts.items()}


def _by_split(content: dict[Any, Any], path: Path) -> tuple[dict[str, Any], Problems]:
    """Return (the entry of the file for each split, under any name of SPLIT_NAMES; problems)."""
    lists: dict[str, Any] = {}
    problems: Problems = []
    for key, classes in content.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None:
            text = f"{path}: {key!r} is not a split; {did_you_mean(str(key), SPLITS)}"
            problems.append(("split_file", text))
        elif split in lists:
            problems.append(("split_file", f"{path} contains the split {split!r} twice"))
        else:
            lists[split] = classes
    return lists, problems


def _resolve_classes(classes: list[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the classes of the names, the names without a class)."""
    meant, absent = [], []
    for class_name in classes:
        inside = [name for name in names if name.startswith(f"{class_name}/")]
        meant.extend([class_name] if class_name in names else inside)
        absent.extend([] if class_name in names or inside else [class_name])
    return meant, sorted(absent)
