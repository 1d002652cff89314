"""Icons: one concept drawn by many designers; 310 concepts, 87 designer families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from metalearn import rng
from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.tasks import images, store
from metalearn.tasks.prepared.file import PreparedFile
from metalearn.types import Batch, Episode, Key

FILE = PreparedFile(
    source="icons",
    file="icons64.npz",
    sha256="403b6a39c9f32f6b5a2a54107e6ac22ac355010e806a674f003b748f94cdaf71",
    arrays={
        "images": ((11792, 64, 64), "uint8"),
        "label": ((11792,), "int16"),
        "family": ((11792,), "int16"),
        "split": ((310,), "int8"),
        "family_split": ((87,), "int8"),
    },
    origin="it is made of the npm package @iconify/json 2.2.535, with icons64_credits.json beside",
)
SIZE = 64


class Icons(images.ImageTask):
    """Interface icons of 310 concepts ("bell", "trash"), each drawn by 20 to 79 designers.

    Classes: 197 / 50 / 63, concepts alike in look or meaning on one side of the split. A designer
    drew at most one image of a class, so two shots always come from two designers. With
    `designers: unseen` support sets come from the 56 training designers, and queries of validation
    and test tasks from the 10 and 21 others; classes with too few drawings are left out. Images
    are [1, size, size] in 0..1, ink bright. Raises ConfigError, DataError.

    >>> source = ml.tasks.Icons(ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1, 28, 28])
    """

    source: Literal["icons"] = option("icons", "The task source.")
    size: Literal[28, 64] = option(28, "Height and width in pixels.", fixed_by_training=True)
    designers: Literal["all", "unseen"] = option(
        "all",
        "Designers of query images: all, or (validation and test) only designers who "
        "are not in the support set.",
    )

    def source_of(self, **where: Any) -> images.ImageSource | UnseenDesigners:
        split = where["split"]
        data, code = FILE.load(), images.SPLITS.index(split)
        classes = np.flatnonzero(data["split"] == code)
        if self.designers == "all":
            return self._source(_rows_by_class(classes, data["label"]), where)
        drawn_by = data["family_split"][data["family"]]
        training_rows = _rows_by_class(classes, np.where(drawn_by == 0, data["label"], -1))
        held_out_rows = _rows_by_class(classes, np.where(drawn_by == code, data["label"], -1))
        if split == "train":
            return self._source(_keep_large(training_rows, self.shots + self.queries), where)
        pairs = zip(training_rows, held_out_rows, strict=True)
        large_pairs = [(a, b) for a, b in pairs if len(a) >= self.shots and len(b) >= self.queries]
        support = self.model_copy(update={"queries": 0})._source([a for a, _ in large_pairs], where)
        if not self.queries:
            return support
        query_task = self.model_copy(update={"shots": self.queries, "queries": 0})
        return UnseenDesigners(support, query_task._source([b for _, b in large_pairs], where))

    def _source(self, rows: Sequence[store.Array], where: dict[str, Any]) -> images.ImageSource:
        least = self.shots + self.queries
        small = min((len(class_rows) for class_rows in rows), default=least)
        problems = images.episode_problems(
            self.ways, self.shots, self.queries, len(rows), small, where["split"]
        )
        if problems:
            raise ConfigError(*problems)
        pool = _images(self.size)[np.concatenate(rows)]
        counts = [len(class_rows) for class_rows in rows]
        digest = FILE.data_sha256()
        return images.image_source(
            torch.from_numpy(pool).unsqueeze(1), self, data_sha256=digest, counts=counts, **where
        )


class UnseenDesigners:
    """Episodes whose support set comes from one source and whose queries from another.

    Both draw the same classes, by the same keys."""

    def __init__(self, support: images.ImageSource, query: images.ImageSource) -> None:
        self._support, self._query = support, query
        self.data_sha256, self.facts = support.data_sha256, support.facts
        self.spec = replace(support.spec, queries=query.spec.shots)

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """As ImageSource.sample."""
        support, _, info = self._support.sample(key, num_tasks, start)
        query, _, _ = self._query.sample(key, num_tasks, start)
        # Permuted again: where K = Q, the order of the labels is that of the support set.
        order = rng.permutation(rng.fold_in(info["key"], "queries"), query.y.shape[1])
        tasks = torch.arange(num_tasks, device=order.device).unsqueeze(-1)
        return Episode(support, Batch(query.x[tasks, order], query.y[tasks, order]), info)

    def examples(self, key: Key, size: int) -> Batch:
        return self._support.examples(key, size)


def _rows_by_class(classes: store.Array, label: store.Array) -> list[store.Array]:
    return [np.flatnonzero(label == number) for number in classes]


def _keep_large(rows: list[store.Array], least: int) -> list[store.Array]:
    """The classes with at least `least` images."""
    return [class_rows for class_rows in rows if len(class_rows) >= least]


@lru_cache(maxsize=2)
def _images(size: int) -> store.Array:
    """All drawings, uint8 [11792, size, size], reduced by Pillow's Lanczos filter."""
    drawings = FILE.load()["images"]
    if size == SIZE:
        return drawings
    resized = [Image.fromarray(d).resize((size, size), Image.Resampling.LANCZOS) for d in drawings]
    return np.stack([np.asarray(image, dtype=np.uint8) for image in resized])
