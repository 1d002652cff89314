"""Episodes of images drawn by episodes.cpp: bit for bit what tasks/images.py draws with torch,
without its overhead.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn import rng
from metalearn.kernels.build import load
from metalearn.types import Batch, Episode, EpisodeSpec, Key

SOURCE = Path(__file__).with_name("episodes.cpp")
ALONE = 1 << 26  # bytes of floats below which a second thread is not worth waking


@functools.cache
def kernel() -> Callable[..., None] | None:
    """episodes.cpp's function, built and loaded at the first call; None without a compiler."""
    library, _ = load(SOURCE)
    if library is None:
        return None
    function = library.metalearn_episodes
    whole, number, name, place = ctypes.c_int, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p
    pool: list[Any] = [place, *[number] * 4, place, place]
    drawn: list[Any] = [name, *[number] * 5, name]
    function.argtypes = [whole, *pool, *drawn, *[place] * 6, whole]
    function.restype = None
    return function


def episodes(
    draw: Callable[..., None],
    spec: EpisodeSpec,
    rows: Tensor,
    counts: Tensor,
    starts: Tensor,
    same: int | None,
    turned: int,
    key: Key,
    num_tasks: int,
    start: int,
) -> Episode:
    """Episodes start .. start + T - 1 of `key` by `draw`; rows uint8 [images, bytes], counts and
    starts [classes].

    `turned` is how many rows one quarter turn has, 0 where classes are not turned. Shapes as
    ImageSource.sample."""
    ways, width = spec.ways, int(rows.shape[1])
    sizes = [ways * spec.shots, ways * spec.queries]
    x = [torch.empty((num_tasks, size, *spec.x_shape), dtype=spec.dtype) for size in sizes]
    y = [torch.empty((num_tasks, size), dtype=torch.int64) for size in sizes]
    keys, class_ids = (
        torch.empty(num_tasks, dtype=torch.int64),
        torch.empty((num_tasks, ways), dtype=torch.int64),
    )
    draw(
        x[0].element_size(),
        *(
            rows.data_ptr(),
            width,
            spec.num_classes,
            same or 0,
            turned,
            counts.data_ptr(),
            starts.data_ptr(),
        ),
        *(
            int(key) & rng.MASK,
            start,
            num_tasks,
            ways,
            spec.shots,
            spec.queries,
            rng.number("order"),
        ),
        *(
            x[0].data_ptr(),
            y[0].data_ptr(),
            x[1].data_ptr(),
            y[1].data_ptr(),
            keys.data_ptr(),
            class_ids.data_ptr(),
        ),
        torch.get_num_threads() if x[0].nbytes + x[1].nbytes >= ALONE else 1,
    )
    step = torch.zeros(num_tasks, dtype=spec.dtype)
    return Episode(
        Batch(x[0], y[0]), Batch(x[1], y[1]), {"key": keys, "step": step, "class_ids": class_ids}
    )
