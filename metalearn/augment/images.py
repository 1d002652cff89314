"""Random label-preserving augmentations of images, as functions of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metalearn.rng import fold_in, integers, uniform

Change = Literal["crop", "flip", "colour"]
# Numbers, made at import: a step that hashes a name cannot be compiled.
CROP, FLIP, COLOUR = (int(fold_in(0, name)) for name in ("crop", "flip", "colour"))
JITTER = 0.4  # half width of the factors of brightness, contrast and saturation
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601: luma of red, green and blue


def augment(x: Tensor, keys: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return images [B, channels, H, W], each augmented with its own key [B].

    crop: shift by up to H // 8 pixels (at most 8) each way, zeros come in; flip: mirror left and
    right, or not; colour: factors of brightness, contrast and saturation uniform within 1 +- 0.4
    (Tian et al. 2020, arXiv:2003.11539, who draw the order of the three, too), within 0..1, or the
    range of the image where it is wider: images of 0..255 and standardised ones stay what they are.
    """
    original = x
    if "crop" in changes:
        x = _crop(x, fold_in(keys, CROP))
    if "flip" in changes:
        mirrored = integers(fold_in(keys, FLIP), (1, 1, 1), 2) == 1
        x = torch.where(mirrored, x.flip(-1), x)
    return _colour(x, fold_in(keys, COLOUR), original) if "colour" in changes else x


def _crop(x: Tensor, keys: Tensor) -> Tensor:
    for number, axis in enumerate((-2, -1)):
        size = x.shape[axis]
        max_shift = min(8, size // 8)
        shift = integers(fold_in(keys, number), (1,), 2 * max_shift + 1) - max_shift  # [B, 1]
        rows = torch.arange(size, device=x.device) + shift  # [B, size]
        inside = (rows >= 0) & (rows < size)
        shape = (x.shape[0], 1, size, 1) if axis == -2 else (x.shape[0], 1, 1, size)
        index = rows.clamp(0, size - 1).reshape(shape).expand(x.shape)
        x = x.gather(axis, index) * inside.reshape(shape)
    return x


def _colour(x: Tensor, keys: Tensor, original: Tensor) -> Tensor:
    """Clamp the result to 0..1, or to the range of `original`, the image before its crop."""
    lower = original.amin((-3, -2, -1), keepdim=True).clamp(max=0)
    upper = original.amax((-3, -2, -1), keepdim=True).clamp(min=1)
    low, high = 1 - JITTER, 1 + JITTER
    factors = uniform(keys, (3, 1, 1, 1), low, high, dtype=x.dtype)
    brightness, contrast, saturation = factors.unbind(-4)  # [B, 1, 1, 1]
    x = (brightness * x).clamp(lower, upper)
    middle = _grey(x).mean((-2, -1), keepdim=True)
    x = (middle + contrast * (x - middle)).clamp(lower, upper)
    grey = _grey(x)
    return (grey + saturation * (x - grey)).clamp(lower, upper)


def _grey(x: Tensor) -> Tensor:
    """[B, channels, H, W] -> [B, 1, H, W]."""
    if x.shape[-3] != len(_GREY):
        return x.mean(-3, keepdim=True)
    weights = torch.tensor(_GREY, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
    return (weights * x).sum(-3, keepdim=True)
