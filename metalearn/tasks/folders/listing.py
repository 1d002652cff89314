"""Classes and image files of a folder, in the layouts in which such data are published.

    root/CLASS/image                 one folder of images per class
    root/GROUP/CLASS/image           two levels; the class is called GROUP/CLASS
    root/train|val|test/...          the same inside of split folders
    root/image, and a CSV file       names of files and labels, and optionally a split

Names are compared in Unicode form NFC: file systems and editors write "é" as one character or as
two."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from metalearn.errors import ConfigError, DataError
from metalearn.logger import warn_once
from metalearn.storage.columns import has_no_label, missing_label_hint, read_columns, similar_names

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "name")
LABEL_COLUMNS = ("label", "class", "class_name", "target", "y")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_SHOWN = 10  # problems of one kind that are listed before "and n more"
# Files that desktops create in folders of images, besides names with a leading dot.
_IGNORED = ("Thumbs.db", "desktop.ini")
_IGNORED_FOLDERS = ("__MACOSX",)  # of archives


class Listing(NamedTuple):
    """The classes and files of a folder, sorted by name."""

    names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]
    # the split of every file, if the folder or the CSV file has it
    splits: tuple[tuple[str, ...], ...] | None = None


Entry = tuple[str, Path, str]  # class, file, split ("" if it is not stated)


def nfc(name: str) -> str:
    """The name in Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def abbreviate(items: Iterable[str]) -> str:
    """Return the first items as text, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def list_folder(root: Path, labels: Path | None = None) -> Listing:
    """Return the classes and image files under `root`; `labels` is a CSV file of names and labels.

    Raises DataError with all problems."""
    if not root.is_dir():
        text = f"{root} is not a directory; it must contain one subfolder of images per class"
        raise DataError(("path", text))
    try:
        return _listing(_from_table(root, labels) if labels else _from_folders(root), root)
    except OSError as error:
        raise DataError(("path", f"{root} cannot be read: {error}")) from error


def image_files(root: Path) -> list[Path]:
    """Return all files at any depth under a folder, sorted, without names with a leading dot.

    Also below links to folders, but not below a link to a folder that contains it."""
    return sorted(_files_below(root, {root.resolve()}))


def _files_below(folder: Path, above: set[Path]) -> Iterator[Path]:
    for file in _files(folder):
        if file.is_file():
            yield file
    for inner in _folders(folder):
        real = inner.resolve()
        if real not in above:
            yield from _files_below(inner, above | {real})


def _listing(entries: list[Entry], root: Path) -> Listing:
    groups: dict[str, list[tuple[Path, str]]] = {}
    for name, file, split in entries:
        groups.setdefault(name, []).append((file, split))
    names = sorted(groups)
    if len(names) < 2:
        text = f"{root} contains {len(names)} class folders; a task needs at least 2"
        raise DataError(("path", text))
    if pair := similar_names(names):
        text = f"classes {pair} differ only in spaces, Unicode form or .0: use one name"
        raise DataError(("path", f"{root}: {text}"))
    rows = [sorted(groups[name]) for name in names]
    files = tuple(tuple(file for file, _ in row) for row in rows)
    splits = tuple(tuple(split for _, split in row) for row in rows)
    return Listing(tuple(names), files, splits if any(map(any, splits)) else None)


def _from_folders(root: Path) -> list[Entry]:
    folders = _folders(root)
    splits = [SPLIT_NAMES.get(folder.name.lower()) for folder in folders]
    split_folders = [
        folder.name for folder, split in zip(folders, splits) if split and _folders(folder)
    ]
    by_split = len(split_folders) > 1
    if strays := [file.name for file in _files(root) if file.suffix.lower() in IMAGES]:
        text = f"path: images in {root} itself have no class and are skipped: {abbreviate(strays)}"
        warn_once(text)
    if by_split and (len(split_folders) < len(folders) or len(set(splits)) < len(splits)):
        folder_names = abbreviate(folder.name for folder in folders)
        text = f"{root} contains split folders ({abbreviate(split_folders)}): use one per split"
        raise DataError(("path", f"{text}, and no others; it contains {folder_names}"))
    problems: list[tuple[str, str]] = []
    entries: list[Entry] = []
    for folder, split in zip(folders, splits, strict=True) if by_split else [(root, "")]:
        classes, wrong = _classes(folder)
        problems.extend(wrong)
        entries.extend((name, file, split or "") for name, file in classes)
    if len(folders) < 2:
        text = f"{root} contains {len(folders)} class folders; a task needs at least 2"
        inside = f": set path to {folders[0]}" if folders and _folders(folders[0]) else ""
        problems.insert(0, ("path", text + inside))
    if problems:
        raise DataError(*problems)
    return entries


def _classes(root: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """Return (class, file) of one or two levels of folders, and their problems."""
    entries: list[tuple[str, Path]] = []
    leaves: dict[str, Path] = {}
    empty, deep, mixed, twice = (list[str]() for _ in range(4))
    for folder in _folders(root):
        inner = _folders(folder)
        if inner and _files(folder):
            mixed.append(str(folder))
            continue
        for leaf in inner or [folder]:
            name = nfc(leaf.relative_to(root).as_posix())
            if name in leaves:
                twice.append(name)
            leaves[name], files = leaf, _files(leaf)
            deep.extend(str(item) for item in _folders(leaf))
            if not files and not _folders(leaf):
                empty.append(name)
            entries.extend((name, file) for file in files)
    texts = [
        (f"{root}: class folders without images: ", empty),
        ("folders hold images or folders of classes, not both: ", mixed),
        ("folders of classes may be two levels deep (GROUP/CLASS/image); no folders below: ", deep),
        (f"{root}: two folders whose names differ only in Unicode form: ", twice),
    ]
    return entries, [("path", text + abbreviate(names)) for text, names in texts if names]


def _from_table(root: Path, labels: Path) -> list[Entry]:
    columns = read_columns(labels, "labels")
    by_name = {name.lower(): name for name in columns}
    file_column, label_column = (
        next((by_name[name] for name in names if name in by_name), None)
        for names in (FILE_COLUMNS, LABEL_COLUMNS)
    )
    if file_column is None or label_column is None:
        missing = "file" if file_column is None else "label"
        text = f"{labels} has no column called {missing}; it has {', '.join(columns)}"
        raise ConfigError(("labels", text))
    splits = _split_column(columns[by_name["split"]], labels) if "split" in by_name else None
    by_path = {nfc(file.relative_to(root).as_posix()): file for file in image_files(root)}
    names = [_relative(nfc(str(name)), root, by_path) for name in columns[file_column]]
    lost = [name for name in names if name not in by_path]
    twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    unlabelled = has_no_label(columns[label_column])
    labelled = zip(names, columns[label_column], unlabelled, strict=True)
    blank = [name + missing_label_hint(value) for name, value, no_label in labelled if no_label]
    texts = [
        (f"{labels} names files that are not in {root}: ", lost),
        (f"{labels} names files twice: ", twice),
        (f"{labels} has no label for ", blank),
    ]
    if problems := [("labels", text + abbreviate(items)) for text, items in texts if items]:
        raise DataError(*problems)
    classes = [nfc(str(value)) for value in columns[label_column]]
    files = [by_path[name] for name in names]
    return list(zip(classes, files, splits or [""] * len(names), strict=True))


def _relative(name: str, root: Path, files: Mapping[str, Path]) -> str:
    """Return a name of a table relative to `root`; it may be absolute or have backslashes."""
    if name in files:
        return name
    name = name.replace("\\", "/").removeprefix("./")
    return name.removeprefix(f"{nfc(root.absolute().as_posix())}/")


def _split_column(column: Iterable[object], labels: Path) -> list[str]:
    names = [str(value).strip().lower() for value in column]
    if unknown := sorted(set(names) - set(SPLIT_NAMES)):
        text = f"{labels}: column split contains {abbreviate(map(repr, unknown))}"
        raise ConfigError(("labels", f"{text}; valid: train, valid, test"))
    return [SPLIT_NAMES[name] for name in names]


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def _folders(root: Path) -> list[Path]:
    return sorted(
        item
        for item in root.iterdir()
        if item.is_dir() and not item.name.startswith(".") and item.name not in _IGNORED_FOLDERS
    )


def _files(folder: Path) -> list[Path]:
    """Return the entries that are not folders, with broken links, which the decoder reports."""
    items = (item for item in folder.iterdir() if not item.name.startswith("."))
    return sorted(item for item in items if item.name not in _IGNORED and not item.is_dir())
