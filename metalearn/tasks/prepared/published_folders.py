"""miniImageNet, tieredImageNet and CUB-200: images that you have, in the published splits."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch

from metalearn.component import option
from metalearn.errors import DataError
from metalearn.tasks import images, store
from metalearn.tasks.folders.decode import load_images
from metalearn.tasks.folders.listing import Listing, abbreviate, image_files
from metalearn.tasks.prepared.archives import SUFFIXES, find_class, is_archive, load_archive
from metalearn.tasks.prepared.splits import published

LAYOUT = (
    "a folder with one subfolder of images per class, at any depth, or files whose names start "
    "with their class; or a .zip or .tar archive of either"
)


class PublishedFolder(images.ImageTask):
    """A data set whose images the user has, with a published split of its classes."""

    path: str | None = option(
        None, "Folder or archive of the images; null: the source's name in METALEARN_DATA."
    )
    size: int = option(84, "Height and width in pixels.", ge=16, fixed_by_training=True)

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the images come from, a sentence."""

    def source_of(self, **where: Any) -> images.ImageSource:
        """The source of one split; images of its classes alone are read."""
        split = where["split"]
        root, names = self._root(), published(self.source)[split]
        if is_archive(root):
            pool, counts, digest = load_archive(root, names, self.size)
        else:
            listing = list_classes(root, names)
            pool, counts, digest = load_images(listing, self.size, 3, invert=False)
        if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
            text = f"{root} has no images of {len(absent)} of {len(names)} {split} classes: "
            raise DataError(("path", f"{text}{abbreviate(absent)}. It must be {LAYOUT}"))
        writable_pool = torch.from_numpy(pool if pool.flags.writeable else pool.copy())
        source = images.image_source(
            writable_pool, self, data_sha256=digest, counts=counts, **where
        )
        fewest, largest = min(counts), max(counts)
        source.facts["images_a_class"] = fewest if fewest == largest else f"{fewest} to {largest}"
        return source

    def _root(self) -> Path:
        if self.path is not None:
            root = Path(self.path).expanduser()
        else:
            existing = [path for path in places(self.source) if path.exists()]
            root = existing[0] if existing else places(self.source)[0]
        if not root.exists():
            raise DataError(("path", f"{root} does not exist. {self.origin} Use {LAYOUT}"))
        return root


def places(name: str) -> list[Path]:
    """Return the paths in METALEARN_DATA at which the images of a source may be."""
    endings = ("", ".zip", ".tar", ".tgz", ".tar.gz")
    return [store.data_root() / f"{name}{ending}" for ending in endings]


def list_classes(root: Path, names: tuple[str, ...]) -> Listing:
    """Return the images of the classes `names` under a folder, each class sorted by path."""
    class_names, groups = set(names), {name: list[Path]() for name in names}
    for file in image_files(root):
        class_name = find_class(file.relative_to(root).parts[:-1], file.name, class_names)
        if class_name is not None and file.suffix.lower() in SUFFIXES:
            groups[class_name].append(file)
    return Listing(names, tuple(tuple(groups[name]) for name in names))


class MiniImageNet(PublishedFolder):
    """miniImageNet: 64 / 16 / 20 classes of ImageNet, 600 images each, 84x84 in colour.

    The split of Ravi & Larochelle 2017. Images are resized by Pillow's Lanczos filter, and are
    [3, size, size] in 0..1. Raises ConfigError, DataError.

    >>> source = ml.tasks.MiniImageNet(path="mini_imagenet.zip", ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 3, 84, 84])
    """

    source: Literal["mini_imagenet"] = option("mini_imagenet", "The task source.")

    @property
    def origin(self) -> str:
        return (
            "Its authors publish only lists of images (twitter/meta-learning-lstm); the images "
            "are ImageNet's (image-net.org, under its terms)."
        )


class TieredImageNet(PublishedFolder):
    """tieredImageNet: 351 / 97 / 160 classes of ImageNet in 20 / 6 / 8 categories, 84x84.

    The split of Ren et al. 2018 (arXiv:1803.00676): no category lies on both sides. Images are [3,
    size, size] in 0..1. Raises ConfigError, DataError.

    >>> source = ml.tasks.TieredImageNet(path="tiered_imagenet.zip", ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 3, 84, 84])
    """

    source: Literal["tiered_imagenet"] = option("tiered_imagenet", "The task source.")

    @property
    def origin(self) -> str:
        return "Its classes are folders of ImageNet's training images (image-net.org)."


class CUB200(PublishedFolder):
    """CUB-200-2011: 100 / 50 / 50 species of birds, 41 to 60 photos each, 84x84 in colour.

    The split of Chen et al. 2019 as torchmeta has it; photos are not cropped to the birds. Images
    are [3, size, size] in 0..1. Raises ConfigError, DataError.

    >>> source = ml.tasks.CUB200(path="CUB_200_2011.tgz", ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 3, 84, 84])
    """

    source: Literal["cub200"] = option("cub200", "The task source.")

    @property
    def origin(self) -> str:
        return (
            "CUB_200_2011.tgz is published at data.caltech.edu/records/65de6-vp158: fetch it and "
            "give its path, or put it into METALEARN_DATA as cub200.tgz."
        )


def data_set(task: PublishedFolder, sentence: str) -> store.DataSet:
    """Return its entry in the table of data sets; it is never downloaded."""

    def verify() -> list[str]:
        small_task = task.model_copy(update={"shots": 1, "queries": 1})
        where: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
        sources = {split: small_task.source_of(split=split, **where) for split in images.SPLITS}
        return [
            f"{split}: {source.spec.num_classes} classes, {source.facts['images_a_class']} images"
            for split, source in sources.items()
        ]

    absent = f"not there; `metalearn data prepare {task.source}` says where its images come from"
    return store.DataSet(sentence, f"{task.source}*", absent, False, verify, verify)
