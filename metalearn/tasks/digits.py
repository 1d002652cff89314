"""The handwritten digits that scikit-learn ships (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from metalearn import rng
from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.tasks import images, store

# Fractions of the images of every class.
SHARES = {"train": (0.0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1.0)}
SMALLEST = {"train": 104, "valid": 34, "test": 35}  # images of the rarest digit


class Digits(images.ImageTask):
    """Handwritten digits of 8x8 pixels, no download; all splits contain the ten classes.

    1,797 images, 174 to 183 in each class, shuffled once by a fixed key: 60 % for training, a fifth
    each for validation and test. Images are [1, 8, 8] in 0..1, ink bright. Needs scikit-learn.
    Raises ConfigError, DataError.

    >>> source = ml.tasks.Digits(ways=3, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 3, 1, 8, 8])
    """

    source: Literal["digits"] = option("digits", "The task source.")
    ways: int = option(10, "N, digits per task.", ge=2, le=10)
    shots: int = option(20, "K, support images per class.", ge=1)
    queries: int = option(10, "Q, query images per class; may be 0.", ge=0)

    def source_of(self, **where: Any) -> images.ImageSource:
        split = where["split"]
        problems = images.episode_problems(
            self.ways, self.shots, self.queries, 10, SMALLEST[split], split
        )
        if problems:
            raise ConfigError(*problems)
        pool, counts, digest = _split(split)
        return images.image_source(pool, self, data_sha256=digest, counts=counts, **where)


def _split(split: str) -> tuple[torch.Tensor, list[int], str]:
    """Return (uint8 images [B, 1, 8, 8] by class, images per class, hash of the data set)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels, labels = np.asarray(data.images), np.asarray(data.target)
    parts, counts = [], []
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        rows = rows[rng.permutation(rng.fold_in(0, "digits", digit), len(rows)).numpy()]
        low, high = (round(share * len(rows)) for share in SHARES[split])
        parts.append(pixels[rows[low:high]])
        counts.append(high - low)
    ink = np.round(np.concatenate(parts) * (255 / 16)).astype(np.uint8)
    return (
        torch.from_numpy(ink).unsqueeze(1),
        counts,
        store.sha256_of_arrays(pixels.astype(np.uint8)),
    )
