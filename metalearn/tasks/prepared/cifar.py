"""CIFAR-FS and FC100: two few-shot splits of CIFAR-100."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch

from metalearn.component import option
from metalearn.tasks import images
from metalearn.tasks.prepared import cifar100
from metalearn.tasks.prepared.splits import published

REPEATS = (
    "What to do with training and validation images that a later split contains pixel by pixel."
)


class _Cifar(images.ImageTask):
    repeated_images: Literal["keep", "leave_out"] = option("keep", REPEATS)

    @property
    @abstractmethod
    def split_file(self) -> str:
        """Name of the published split."""

    def source_of(self, **where: Any) -> images.ImageSource:
        """The source of one split; its `facts` say which pixels were read."""
        split = where["split"]
        file, parts = cifar100.stored_file(), published(self.split_file)
        classes = {name: cifar100.class_numbers(parts[name]) for name in images.SPLITS}
        pool = cifar100.images_of(classes[split])
        counts = [int(pool.shape[1])] * len(pool)
        if self.repeated_images == "leave_out":
            masks = cifar100.first_copies(list(classes.values()))[images.SPLITS.index(split)]
            counts = [int(row.sum()) for row in masks]
            pool = pool[torch.from_numpy(masks)]
        where["counts"] = counts if pool.dim() == 4 else None
        source = images.image_source(pool, self, data_sha256=file.data_sha256(), **where)
        copies = "JPEG copies, quality 95"
        source.facts["pixels"] = copies if file is cifar100.JPEG else "as published"
        source.facts["repeated_images"] = self.repeated_images
        return source


class CIFARFS(_Cifar):
    """CIFAR-FS: 64 / 16 / 20 classes of CIFAR-100, 600 images each, 32x32 in colour.

    The split of Bertinetto et al. 2019 (arXiv:1805.08136). 15 groups of equal images lie on both
    sides of it: `repeated_images: leave_out` leaves those of training and validation out that a
    later split holds. Images are [3, 32, 32] in 0..1. Raises ConfigError, DataError.

    >>> source = ml.tasks.CIFARFS(ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 3, 32, 32])
    """

    source: Literal["cifar_fs"] = option("cifar_fs", "The task source.")

    @property
    def split_file(self) -> str:
        return "cifar_fs"


class FC100(_Cifar):
    """FC100: 60 / 20 / 20 classes of CIFAR-100 in 12 / 4 / 4 superclasses, 32x32 in colour.

    The split of Oreshkin et al. 2018 (arXiv:1805.10123): no superclass lies on both sides, which
    makes it harder than CIFAR-FS. 3 groups of equal images do: see `repeated_images`. Images are
    [3, 32, 32] in 0..1. Raises ConfigError, DataError.

    >>> source = ml.tasks.FC100(ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 3, 32, 32])
    """

    source: Literal["fc100"] = option("fc100", "The task source.")

    @property
    def split_file(self) -> str:
        return "fc100"
