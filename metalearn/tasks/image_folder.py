"""User images: a folder with one folder of images for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator

from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.tasks import images
from metalearn.tasks.folders.decode import decode_images, load_images
from metalearn.tasks.folders.listing import Listing, image_files, list_folder
from metalearn.tasks.folders.splits import (
    Selection,
    describe_split,
    select,
    split_classes,
    split_images,
)

__all__ = ["ImageFolder", "decode_images", "image_files", "list_folder"]


class ImageFolder(images.ImageTask):
    """Your own images: a folder with one subfolder of images per class.

    Also two levels of folders (GROUP/CLASS), folders train, val and test around either, and images
    in any folders with a CSV file `labels` of the columns file, label and, if you like, split.
    Every file in a class folder must be an image that Pillow reads (names with a leading dot are
    ignored). Images are rotated by their EXIF tag, put on white where they are transparent,
    converted to `channels`, and resized to size x size by Pillow's Lanczos filter without keeping
    proportions. Classes may have different numbers of images; all images are used. Decoded images
    are cached in the data folder, by the contents of the files.

    Splits: `split_file`, JSON {"train": [class, ...], "valid": [...], "test": [...]}; else the
    folders train, val and test, or the column split; else by `fractions` of the classes in an order
    drawn with `split_seed` (null: build's seed, so give every split of one run the same one).
    Without validation classes a tenth of the training classes is held out with the same seed. With
    `same_classes` every class is in every split, with images of its own: new images of known
    classes, not new classes. Raises ConfigError, DataError.

    >>> source = ml.tasks.ImageFolder(path="photos", ways=5, shots=1, queries=5, size=28).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 3, 28, 28])
    """

    split_fields: ClassVar[tuple[str, ...]] = (
        *("split_file", "labels", "fractions", "same_classes", "split_seed"),
    )
    source: Literal["image_folder"] = option("image_folder", "The task source.")
    path: str = option(..., "Folder with one subfolder of images per class.", min_length=1)
    channels: Literal[1, 3] = option(3, "Number of channels: 1 for grey, 3 for colour.")
    size: int | None = option(
        None,
        "Height and width in pixels; null: 28 for grey, as Omniglot, and 84 for colour, as "
        "miniImageNet.",
        ge=4,
        fixed_by_training=True,
    )
    invert: bool = option(
        False,
        "Invert the images (for dark ink on a light background), so that ink is bright.",
        fixed_by_training=True,
    )
    split_file: str | None = option(
        None, 'JSON file {"train": [class, ...], "valid": [...], "test": [...]}.'
    )
    labels: str | None = option(
        None,
        "CSV file with the columns file (relative to path), label and optionally split.",
        min_length=1,
        later=True,
    )
    fractions: tuple[float, float, float] = option(
        (0.64, 0.16, 0.20),
        "Fractions of the classes for train, valid and test if there is no split_file; with sum 1.",
    )
    same_classes: bool = option(
        False,
        "Use all classes in every split, with different images; fractions are then of the images.",
        later=True,
    )
    min_images: int = option(
        1, "Leave out classes with fewer images (in a split).", ge=1, later=True
    )
    split_seed: int | None = option(
        None,
        "Seed of the split by fractions and of the held-out tenth; null: 0 in every run, whatever "
        "its seed, so that all seeds have the same test classes.",
        ge=0,
    )

    @field_validator("fractions")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        images.check_shares(value)
        return value

    def resolve(self, seed: int) -> ImageFolder:
        """The task with an explicit split seed, for a resolved config."""
        return self if self.split_seed is not None else self.model_copy(update={"split_seed": seed})

    @property
    def fixed_values(self) -> dict[str, Any]:
        """Fields that training fixes, with the default size instead of null."""
        return {**super().fixed_values, "size": self.pixels}

    def contradictions(self, trained: TaskComponent) -> list[tuple[str, str]]:
        """Return contradictions; another folder may have ink of another colour."""
        problems = super().contradictions(trained)
        other_folder = isinstance(trained, ImageFolder) and trained.path != self.path
        return [(name, text) for name, text in problems if not (other_folder and name == "invert")]

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
        listing = self._listing()
        split_seed = self.resolve(seed).split_seed or 0
        selection = self._select(listing, split, split_seed)
        self._check(selection, split, len(listing.names))
        pool, _, digest = load_images(listing, self.pixels, self.channels, self.invert)
        all_files = (file for files in listing.files for file in files)
        row_of = {file: row for row, file in enumerate(all_files)}
        rows = [row_of[file] for files in selection.files for file in files]
        source = images.image_source(
            torch.from_numpy(pool[rows]),
            self,
            split=split,
            device=device,
            dtype=dtype,
            data_sha256=digest,
            counts=[len(files) for files in selection.files],
        )
        source.facts["split_seed"] = split_seed
        source.class_names = selection.names
        source.split_rule = describe_split(
            listing, self._split_path, self.fractions, split_seed, self.same_classes
        )
        if self.same_classes:
            source.facts["same_classes"] = "test tasks have the training classes, in new images"
        return source

    def _listing(self) -> Listing:
        labels = Path(self.labels).expanduser() if self.labels else None
        listing = list_folder(Path(self.path).expanduser(), labels)
        if self.same_classes and self.split_file:
            text = "lists classes, but same_classes uses all in every split: omit one of the two"
            raise ConfigError(("split_file", text))
        return listing

    def _select(self, listing: Listing, split: str, seed: int) -> Selection:
        """Return classes and files of a split, without the classes of fewer than `min_images`."""
        if self.same_classes:
            all_names = {name: list(listing.names) for name in images.SPLITS}
            file_splits = split_images(listing, self.fractions, seed)
            selection = select(listing, all_names, split, file_splits)
        else:
            selection = select(listing, self._parts(listing, seed), split, None)
        large = [len(files) >= self.min_images for files in selection.files]
        pairs = zip(selection.names, selection.files, large, strict=True)
        large_classes = [(name, files) for name, files, is_large in pairs if is_large]
        return Selection(
            tuple(name for name, _ in large_classes), tuple(files for _, files in large_classes)
        )

    def _parts(self, listing: Listing, seed: int) -> dict[str, list[str]]:
        return split_classes(listing, self._split_path, self.fractions, seed)

    @property
    def _split_path(self) -> Path | None:
        return Path(self.split_file).expanduser() if self.split_file else None

    def split(self, names: tuple[str, ...], seed: int) -> dict[str, list[str]]:
        """Return the classes of every split, each sorted."""
        return self._parts(Listing(names, ((),) * len(names)), seed)

    def _check(self, selection: Selection, split: str, classes: int) -> None:
        sizes = {
            name: len(files) for name, files in zip(selection.names, selection.files, strict=True)
        }
        smallest = min(sizes, key=lambda name: sizes[name], default="")
        fewest = sizes.get(smallest, self.shots + self.queries)
        problems = images.episode_problems(
            self.ways, self.shots, self.queries, len(sizes), fewest, split, smallest=smallest
        )
        if problems and problems[0][0] == "ways" and split == "test" and self.ways <= classes:
            hint = f"; with fractions [0, 0, 1] it has all {classes}"
            problems[0] = (problems[0][0], problems[0][1] + hint)
        if problems:
            raise ConfigError(*problems)
