"""Features of a frozen network, looked up if they were computed before.

A table holds features by the SHA-256 of an image's numbers, so that a look-up gives what the
network would compute, whichever source the image comes from."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGEST = 16  # bytes that are kept of the SHA-256 of an image
BATCH = 64  # images that the network sees at once


class FeatureTable:
    """Features [D] of images by their digests; it grows by `add`.

    `seconds`: what the network took for all of them."""

    def __init__(self, digests: list[bytes], features: Tensor, seconds: float = 0.0) -> None:
        self.digests, self.features, self.seconds = digests, features, seconds  # [I, D]
        self._rows = {digest: row for row, digest in enumerate(digests)}

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._rows

    def add(self, digests: list[bytes], features: Tensor, seconds: float) -> FeatureTable:
        """Return a table that also has these features, which took the network `seconds`."""
        both = torch.cat([self.features, features])
        return FeatureTable([*self.digests, *digests], both, self.seconds + seconds)

    def look_up(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return features [B, D] of x [B, *X]; those that the table lacks are computed."""
        rows = [self._rows.get(digest, -1) for digest in digests_of(x)]
        index = torch.tensor(rows, dtype=torch.int64)
        features = self.features[index.clamp(min=0)]
        if (index < 0).any():
            features[index < 0] = network(x[index < 0])
        return features


class FrozenNetwork:
    """A network without trainable parameters: x [B, *X] -> features [B, D].

    `sha256` is that of its weights and of how inputs are prepared. A call computes a few images at
    a time, whatever is batched around it; within `using` a table, images on the CPU are looked up,
    also in traces and counts of FLOPs. Elsewhere these, and compiled and exported programs
    everywhere, contain the operators of the network."""

    def __init__(self, network: Callable[[Tensor], Tensor], width: int, sha256: str) -> None:
        self.network, self.width, self.sha256 = network, width, sha256
        self.looks_up = False  # a part of what determines FLOPs, as the table is not
        self._number = next(_numbers)
        _networks[self._number] = self

    def __call__(self, x: Tensor) -> Tensor:
        if _compiled() or (_recorded() and not self.looks_up):
            return self.network(x)
        features: Tensor = _frozen_features(x, self._number)
        return features

    def compute(self, x: Tensor) -> Tensor:
        """Return the network's outputs on x [B, *X], a few images at a time: [B, D]."""
        with torch.no_grad():
            return torch.cat([self.network(part) for part in x.split(BATCH)])

    @contextmanager
    def using(self, table: FeatureTable) -> Iterator[None]:
        """Look features up in `table` during a block."""
        previous, _tables[self._number] = _tables.get(self._number), table
        self.looks_up = True
        try:
            yield
        finally:
            self.looks_up = previous is not None
            _tables[self._number] = previous


def digests_of(x: Tensor) -> list[bytes]:
    """Return the digest of each image of x [B, *X]."""
    rows = np.ascontiguousarray(x.detach().numpy()).reshape(len(x), -1)
    return [hashlib.sha256(row.data).digest()[:DIGEST] for row in rows]


def _compiled() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def _recorded() -> bool:
    """Return whether operators are recorded or counted, and not only computed."""
    return torch._C._len_torch_dispatch_stack() > 0


_networks: weakref.WeakValueDictionary[int, FrozenNetwork] = weakref.WeakValueDictionary()
_tables: dict[int, FeatureTable | None] = {}  # in use, by the number of the network
_numbers: Iterator[int] = iter(range(1 << 62))


@torch.library.custom_op("metalearn::frozen_features", mutates_args=())
def _frozen_features(x: Tensor, network: int) -> Tensor:
    frozen, table = _networks[network], _tables.get(network)
    if table is None or x.device.type != "cpu":
        return frozen.compute(x)
    return table.look_up(x, frozen.compute)


@_frozen_features.register_fake
def _fake(x: Tensor, network: int) -> Tensor:
    return x.new_empty((x.shape[0], _networks[network].width))


@_frozen_features.register_vmap
def _over_tasks(info: Any, in_dims: Any, x: Tensor, network: int) -> Any:
    x = x.movedim(in_dims[0], 0)
    z = _frozen_features(x.flatten(0, 1), network)
    return z.reshape(*x.shape[:2], -1), 0
