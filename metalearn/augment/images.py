"""Random label-preserving augmentations of images, as functions of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from metalearn.errors import ConfigError
from metalearn.rng import fold_in, integers, uniform

Change = Literal["crop", "flip", "colour", "affine", "rotate"]
# Numbers, made at import: a step that hashes a name cannot be compiled.
CROP, FLIP, COLOUR, AFFINE, ROTATE = (
    int(fold_in(0, name)) for name in ("crop", "flip", "colour", "affine", "rotate")
)
JITTER = 0.4  # half width of the factors of brightness, contrast and saturation
# Half widths of angle (radians), shear, height, width, and shifts as shares of half the side.
_AFFINE = (math.radians(10), 0.3, 0.2, 0.2, 1 / 7, 1 / 7)
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601: luma of red, green and blue


def augment(x: Tensor, keys: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return images [B, channels, H, W], each augmented with its own key [B].

    crop: shift by up to H // 8 pixels (at most 8) each way, zeros come in; flip: mirror left and
    right, or not; colour: factors of brightness, contrast and saturation uniform within 1 +- 0.4
    (Tian et al. 2020, arXiv:2003.11539, who draw the order of the three, too), within 0..1, or the
    range of the image where it is wider: images of 0..255 and standardised ones stay what they are;
    affine: rotate by up to 10 degrees, shear rows by up to 0.3, scale height and width by 0.8 to
    1.2, shift by up to 1/14 of each side, uniformly and independently, zeros come in (after Koch et
    al. 2015, "Siamese neural networks for one-shot image recognition", who shear along both axes,
    shift by at most 2 of 105 pixels, and make each change with probability 0.5); rotate: turn
    counter-clockwise by 0, 90, 180 or 270 degrees, each as likely, without interpolation. Raises
    ConfigError for `rotate` of images that are not square.
    """
    require_square(changes, x.shape)
    original = x
    if "affine" in changes and x.numel():
        x = _affine(x, fold_in(keys, AFFINE))
    if "rotate" in changes:
        x = _rotate(x, fold_in(keys, ROTATE))
    if "crop" in changes:
        x = _crop(x, fold_in(keys, CROP))
    if "flip" in changes:
        mirrored = integers(fold_in(keys, FLIP), (1, 1, 1), 2) == 1
        x = torch.where(mirrored, x.flip(-1), x)
    return _colour(x, fold_in(keys, COLOUR), original) if "colour" in changes else x


def require_square(changes: Sequence[Change], shape: Sequence[int]) -> None:
    """Raise ConfigError for quarter turns of images whose `shape` [..., H, W] is not square."""
    if "rotate" not in changes or len(shape) < 2 or shape[-2] == shape[-1]:
        return
    text = f"rotate makes quarter turns, which need square images (got {shape[-2]}x{shape[-1]})"
    raise ConfigError(("augment", f"{text}: omit rotate, or resize the images"))


def _rotate(x: Tensor, keys: Tensor) -> Tensor:
    """Turn each image by quarter turns of its own: by one or none, then by two or none."""
    turns = integers(keys, (1, 1, 1), 4)  # [B, 1, 1, 1]
    x = torch.where(turns % 2 == 1, x.transpose(-2, -1).flip(-2), x)
    return torch.where(turns >= 2, x.flip((-2, -1)), x)


def _affine(x: Tensor, keys: Tensor) -> Tensor:
    """Sample each image where a random affine map of its own sends the pixels, bilinearly."""
    draws = uniform(keys, (len(_AFFINE),), -1.0, 1.0, dtype=x.dtype)  # [B, 6]
    half_widths = torch.tensor(_AFFINE, dtype=x.dtype, device=x.device)
    angle, shear, height, width, down, right = (draws * half_widths).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    aspect = x.shape[-2] / x.shape[-1]  # the map is one of pixels, the grid's sides are all 2
    linear = torch.stack(
        [
            torch.stack([cos / (1 + width), aspect * (shear * cos - sin) / (1 + width)], -1),
            torch.stack([sin / (aspect * (1 + height)), (shear * sin + cos) / (1 + height)], -1),
        ],
        -2,
    )  # [B, 2, 2], from places of the result to places of the image
    shift = linear @ torch.stack([right, down], -1).unsqueeze(-1)
    grid = affine_grid(torch.cat([linear, -shift], -1), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


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
