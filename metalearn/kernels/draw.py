"""Sampling of image episodes as operators on CUDA: a Triton kernel each, or torch's operators.

Without Triton, or if an episode is too large for it, draw_in_torch.py is called instead."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from metalearn.kernels import choice, draw_in_torch, draw_in_triton
from metalearn.kernels.draw_in_torch import Rows, Sizes
from metalearn.kernels.launch import available
from metalearn.machine import own_kernels

_library = torch.library.Library("metalearn", "FRAGMENT")
_library.define(
    "episode_rows(Tensor key, Tensor counts, Tensor starts, int first, int tasks, int ways,"
    " int shots, int queries, int classes, int same, int turned)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define("scaled_rows(Tensor pool, Tensor rows, Tensor scale) -> Tensor")
_library.define("fold_in(Tensor key, Tensor number) -> Tensor")
choice.register(
    _library,
    draw_in_triton,
    draw_in_torch,
    "episode_rows",
    "scaled_rows",
    "fold_in",
    exact=True,
    data=(3,),
)


def _rows_fake(
    key: Tensor, counts: Tensor, starts: Tensor, first: int, tasks: int, *numbers: int
) -> Rows:
    sizes = Sizes(*numbers)
    lengths = sizes.ways, *[sizes.ways * sizes.shots] * 2, *[sizes.ways * sizes.queries] * 2
    return Rows(key.new_empty(tasks), *(key.new_empty(tasks, length) for length in lengths))


def _scaled_fake(pool: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty(rows.shape[0], pool.shape[1])


torch.library.register_fake("metalearn::episode_rows", _rows_fake, lib=_library)
torch.library.register_fake("metalearn::scaled_rows", _scaled_fake, lib=_library)
torch.library.register_fake(
    "metalearn::fold_in", lambda key, number: key.new_empty(()), lib=_library
)
_ops = torch.ops.metalearn


def _is_in_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and available() and own_kernels()


def episode_rows(
    key: Tensor, counts: Tensor, starts: Tensor, first: int, tasks: int, sizes: Sizes
) -> Rows:
    """Return the choices of episodes first .. first + T - 1 of a key []."""
    if _is_in_triton(key) and draw_in_triton.fits(sizes):
        return Rows(*_ops.episode_rows(key, counts, starts, first, tasks, *sizes))
    return draw_in_torch.episode_rows(key, counts, starts, first, tasks, *sizes)


def scaled_rows(pool: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Return images as numbers: pool [images, bytes] uint8, rows [B], scale [] -> [B, bytes]."""
    if _is_in_triton(pool):
        return cast(Tensor, _ops.scaled_rows(pool, rows.contiguous(), scale))
    return draw_in_torch.scaled_rows(pool, rows, scale)


def fold_in(key: Tensor, number: Tensor) -> Tensor:
    """Return rng.fold_in of a key [] and a number []."""
    if _is_in_triton(key):
        return cast(Tensor, _ops.fold_in(key, number))
    return draw_in_torch.fold_in(key, number)
