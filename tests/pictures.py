"""Images that say what they are, and the arithmetic on them that several test files need."""

from __future__ import annotations

import torch

from metalearn import rng
from metalearn.tasks import Glyphs
from metalearn.tasks.images import ImageSource, image_source
from metalearn.tree import leaves, take
from metalearn.types import Episode

KEY = rng.fold_in(7, "images")
SIDE = 4


def numbered(classes: int, examples: int) -> torch.Tensor:
    """A pool whose corner pixels encode class and example: [classes, examples, 1, 4, 4].

    Pixel (0, 0) is 255 and the other corners are not, so that a rotation can be read too."""
    pool = torch.zeros(classes, examples, 1, SIDE, SIDE, dtype=torch.uint8)
    pool[..., 0, 0] = 255
    pool[..., 1, 1] = torch.arange(classes, dtype=torch.uint8).view(-1, 1, 1)
    pool[..., 1, 2] = torch.arange(examples, dtype=torch.uint8).view(1, -1, 1)
    return pool


def source_of(
    classes: int = 12,
    examples: int = 9,
    ways: int = 5,
    shots: int = 2,
    queries: int = 3,
    **options: object,
) -> ImageSource:
    task = Glyphs(ways=ways, shots=shots, queries=queries)
    return image_source(numbered(classes, examples), task, **options)  # type: ignore[arg-type]


def upright(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in 0..1 rotated back, as integers [..., 4, 4], and their quarter turns [...]."""
    pixels = (x * 255).round().long().squeeze(-3)
    corners = torch.stack(
        [pixels[..., 0, 0], pixels[..., -1, 0], pixels[..., -1, -1], pixels[..., 0, -1]], -1
    )
    # counter-clockwise: the corner goes down the left side first
    turns = (corners == 255).long().argmax(-1)
    back = torch.stack([torch.rot90(pixels, -turn, (-2, -1)) for turn in range(4)])
    index = turns.expand(1, *turns.shape)[..., None, None].expand(1, *pixels.shape)
    return back.gather(0, index)[0], turns


def identity(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(class, example) of numbered images."""
    pixels, _ = upright(x)
    return pixels[..., 1, 1], pixels[..., 1, 2]


def equal(a: Episode, b: Episode) -> bool:
    mine, other = leaves(a), leaves(b)
    return all(torch.equal(x, y) for x, y in zip(mine, other, strict=True))


def part(episode: Episode, first: int, last: int) -> Episode:
    cut: Episode = take(episode, slice(first, last))
    return cut


def chi_square_sigmas(table: torch.Tensor, expected: float, degrees: int) -> float:
    statistic = float(((table - expected) ** 2 / expected).sum())
    return (statistic - degrees) / (2 * degrees) ** 0.5
