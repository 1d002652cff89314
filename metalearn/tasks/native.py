"""Episodes of images sampled by episodes.cpp, bitwise equal to those of tasks/images.py.

The C++ kernel avoids the overhead of torch's operators."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import rng
from metalearn.kernels.build import load
from metalearn.types import Batch, Episode, EpisodeSpec, Key

SOURCE = Path(__file__).with_name("episodes.cpp")
SINGLE_THREAD = 1 << 26  # bytes of floats below which a second thread costs more than it saves


class Pool(NamedTuple):
    """The images of a split, and the offsets of its classes."""

    rows: Tensor  # [images, bytes] uint8; with turns, four blocks of `turned` images
    counts: Tensor  # [classes] int64
    starts: Tensor  # [classes] int64
    same: int | None  # images per class, if all classes have the same number
    turned: int  # rows of one quarter turn; 0 where classes are not rotated


@functools.cache
def kernel() -> Callable[..., None] | None:
    """Return the function of episodes.cpp, compiled at the first call; None without a compiler.

    Arguments: element size; pool; key, start, tasks, ways, shots, queries, the key's name of the
    order; pointers to support x and y, query x and y, keys, class ids; threads."""
    library, _ = load(SOURCE)
    if library is None:
        return None
    function = library.metalearn_episodes
    integer, number, name, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p
    pool_args: list[Any] = [pointer, *[number] * 4, pointer, pointer]
    draw_args: list[Any] = [name, *[number] * 5, name]
    function.argtypes = [integer, *pool_args, *draw_args, *[pointer] * 6, integer]
    function.restype = None
    return function


def episodes(
    draw: Callable[..., None], spec: EpisodeSpec, pool: Pool, key: Key, num_tasks: int, start: int
) -> Episode:
    """Sample episodes start .. start + T - 1 of `key` by `draw`; shapes as ImageSource.sample."""
    ways, classes = spec.ways, spec.num_classes
    sizes = [ways * spec.shots, ways * spec.queries]
    x = [torch.empty((num_tasks, size, *spec.x_shape), dtype=spec.dtype) for size in sizes]
    y = [torch.empty((num_tasks, size), dtype=torch.int64) for size in sizes]
    keys = torch.empty(num_tasks, dtype=torch.int64)
    class_ids = torch.empty((num_tasks, ways), dtype=torch.int64)
    rows, counts, starts, same, turned = pool
    images = (rows.data_ptr(), int(rows.shape[1]), classes, same or 0, turned)
    shape = (start, num_tasks, ways, spec.shots, spec.queries)
    outputs = (x[0], y[0], x[1], y[1], keys, class_ids)
    draw(
        x[0].element_size(),
        *(*images, counts.data_ptr(), starts.data_ptr()),
        *(int(key) & rng.MASK, *shape, rng.number("order")),
        *(tensor.data_ptr() for tensor in outputs),
        torch.get_num_threads() if x[0].nbytes + x[1].nbytes >= SINGLE_THREAD else 1,
    )
    info = {"key": keys, "step": torch.zeros(num_tasks, dtype=spec.dtype), "class_ids": class_ids}
    return Episode(Batch(x[0], y[0]), Batch(x[1], y[1]), info)
