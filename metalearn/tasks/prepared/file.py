"""Prepared files: location, contents and origin."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from metalearn.errors import DataError
from metalearn.tasks import store

Shape = tuple[int | None, ...]  # None: any size


class PreparedFile(NamedTuple):
    """One file of arrays without pickles."""

    source: str  # the task source that reads it
    file: str
    sha256: str
    arrays: dict[str, tuple[Shape, str | None]]  # name -> (shape, dtype or any), of what is read
    origin: str  # where the data come from, the end of a sentence

    def load(self) -> Mapping[str, store.Array]:
        """Return its arrays; raises DataError if it is missing or has other contents."""
        path = store.data_root() / self.file
        if not path.exists():
            text = f"{self.file} is missing: expected in {store.data_root()}"
            raise DataError(("source", f"{text} (METALEARN_DATA); {self.origin}"))
        arrays = store.load_npz(path)
        for name, (shape, dtype) in self.arrays.items():
            array = arrays.get(name)
            if array is None or not _fits(array, shape, dtype):
                form = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
                expected = f"{dtype or ''} {[size or 'any' for size in shape]}".lstrip()
                text = f"array {name!r} is {form}, must be {expected}"
                raise DataError((str(path), text))
        return arrays

    def data_sha256(self) -> str:
        """Return the SHA-256 over the arrays that are read, in the order of `arrays`."""
        path = store.data_root() / self.file
        return _hash(str(path), path.stat().st_mtime_ns, tuple(self.arrays))

    def data_set(self, sentence: str) -> store.DataSet:
        """Return its entry in the table of data sets; it is never downloaded."""
        absent = f"not there; {self.origin}: create it, and put {self.file} into METALEARN_DATA"
        return store.DataSet(sentence, self.file, absent, False, self.verify, self.verify)

    def verify(self) -> list[str]:
        """Return lines for the user; raises DataError unless the file is the published one."""
        self.load()
        path = store.data_root() / self.file
        if (digest := store.sha256_of_file(path)) != self.sha256:
            raise DataError((str(path), f"has sha256 {digest}, must be {self.sha256}"))
        return [f"{path}: as published (sha256 {digest})"]


def _fits(array: store.Array, shape: Shape, dtype: str | None) -> bool:
    same = len(array.shape) == len(shape) and all(
        expected in (None, size) for expected, size in zip(shape, array.shape, strict=True)
    )
    return same and (dtype is None or array.dtype == dtype)


@lru_cache(maxsize=16)
def _hash(path: str, modified: int, names: tuple[str, ...]) -> str:
    del modified  # part of the cache's key only
    arrays = store.load_npz(Path(path))
    return store.sha256_of_arrays(*(arrays[name] for name in names))
