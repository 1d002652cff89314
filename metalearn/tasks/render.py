"""Rendering of `glyphs`: letters from the fonts that matplotlib ships, with random distortions.

A class is a letter; letters whose outlines coincide are one class, named by the first of them. Each
of its 20 drawings takes one of the font faces that have the letter and distorts it by a random
affine map and a smooth random displacement (Simard, Steinkraus & Platt 2003, "Best practices for
convolutional neural networks applied to visual document analysis", section 2; there the noise is
smoothed by a Gaussian, here it is a cubic B-spline over a coarse grid)."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metalearn import rng
from metalearn.errors import DataError

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

DRAWINGS = 20
SIDE = 28  # pixels of a drawing
CANVAS = 56  # pixels of the upright rendering that is distorted
BOX = 36  # pixels of the canvas that the longer side of the ink fills
GRID = 7  # control points of the displacement along each side
# Largest distortions: radians, ratio, log ratio, pixels, pixels.
TURN, SHEAR, STRETCH, SHIFT, ELASTIC = 0.25, 0.25, 0.2, 2.0, 3.0
REACH = 11.5  # largest distance of the ink from the centre before the displacement, in pixels
_POINTS = 128  # size that the fonts are rendered at: letters are only made smaller

# Faces that hold letters. The cm faces carry Greek and ligatures at code points of other letters,
# so they are used for the ASCII letters alone; cmsy10 and cmex10 hold symbols there.
_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
# Upright and regular faces; Mono squeezes letters into one width.
_COMPARED = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
_ASCII_FACES = ("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10")

# Unicode names begin with the script. Names that begin otherwise (MATHEMATICAL, MODIFIER LETTER,
# OHM SIGN, ...) are styles of letters that are already included. Lisu and Old Italic look like
# rotated and plain Latin capitals, so they are in the split of Latin.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        *("LATIN", "CYRILLIC", "CANADIAN SYLLABICS", "ARABIC"),
        *("COPTIC", "OGHAM", "LISU", "OLD ITALIC"),
    ),
    "valid": ("GEORGIAN", "HEBREW", "NKO"),
    "test": ("GREEK", "ARMENIAN", "TIFINAGH", "LAO"),
}

# The distance of two letters is their largest difference in ink over any patch of 5x5 pixels of a
# drawing, 0 to 1, in the face where it is smallest: a bar or an accent that only one of them has
# counts, whatever else they share.
COINCIDE = 0.05  # below: the same outline (Latin A, Greek Alpha, Cyrillic A), one class
DISTINCT = 0.22  # below, to an earlier class: too similar once distorted at 28x28, dropped
APART = 0.25  # the same for an earlier class of another split
SMALLEST = 0.34  # em: smaller ink is a mark (dots, primes, finals), whose drawing would be a blob


class Rendered(NamedTuple):
    """All classes in order of their code points."""

    images: Pixels  # [classes, 20, 28, 28], ink bright
    letters: list[str]
    scripts: list[str]


class Alphabet(NamedTuple):
    """The chosen letters, and the numbers of the others."""

    letters: list[str]
    candidates: int  # letters of the scripts that at least two faces draw
    merged: int  # outlines that coincide with an earlier letter's
    dropped: int  # too near to an earlier class


def script_of(letter: str) -> str | None:
    """The script of a letter by its Unicode name; None for a letter of other scripts."""
    name = unicodedata.name(letter, "")
    return next(
        (s for scripts in SPLITS.values() for s in scripts if name.startswith(s + " ")), None
    )


def split_of(letter: str) -> str:
    """The split that the letter's script belongs to; "" for a letter of other scripts."""
    script = script_of(letter)
    return next((split for split, scripts in SPLITS.items() if script in scripts), "")


def _fonts() -> Path:
    try:
        import matplotlib
    except ImportError:
        text = "the letters use the fonts of matplotlib, but matplotlib is not installed"
        raise DataError(("glyphs", f"{text}: pip install matplotlib")) from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _charmap(path: Path) -> set[str]:
    """The characters that a face draws; glyph 0 is the placeholder (.notdef)."""
    from matplotlib.ft2font import FT2Font

    return {chr(code) for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph}


def _is_letter(character: str) -> bool:
    """Category L of one of our scripts; not Lm, small copies of other letters and tone marks."""
    category = unicodedata.category(character)
    return category[0] == "L" and category != "Lm" and script_of(character) is not None


def faces_of_letters() -> dict[str, list[str]]:
    """{letter: its faces} of our scripts, with at least two faces each, in order of code points."""
    folder, by_letter = _fonts(), dict[str, list[str]]()
    for face in _FACES + _ASCII_FACES:
        if not (folder / f"{face}.ttf").is_file():
            # Another matplotlib may ship fewer; at least two faces are required of each letter.
            continue
        for letter in _charmap(folder / f"{face}.ttf"):
            if face not in _ASCII_FACES or letter.isascii():
                by_letter.setdefault(letter, []).append(face)
    letters = {
        letter: by_letter[letter]
        for letter in sorted(by_letter)
        if len(by_letter[letter]) > 1 and _is_letter(letter)
    }
    faces = {
        letter: [face for face in names if _draws(letter, face)]
        for letter, names in letters.items()
    }
    return {letter: names for letter, names in faces.items() if len(names) > 1}


@lru_cache(maxsize=32)
def _font(face: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        str(_fonts() / f"{face}.ttf"), _POINTS, layout_engine=ImageFont.Layout.BASIC
    )


@lru_cache(maxsize=65536)
def _draws(letter: str, face: str) -> bool:
    """Return whether the face has the letter, larger than a mark."""
    left, top, right, bottom = _font(face).getmask(letter, mode="L").getbbox() or (0, 0, 0, 0)
    return bool(max(right - left, bottom - top) >= SMALLEST * _POINTS)


@lru_cache(maxsize=65536)
def upright(letter: str, face: str) -> Pixels:
    """Return the letter upright and centred, its longer side filling BOX: [56, 56]."""
    left, top, right, bottom = (int(edge) for edge in _font(face).getbbox(letter))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=_font(face))
    image = image.crop(image.getbbox())
    scale = BOX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(
        image.resize(size, Image.Resampling.BILINEAR),
        ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2),
    )
    return np.asarray(canvas)


def _distances(pictures: Pixels) -> Array:
    """Largest differences of patch means between pictures [L, 56, 56]: [L, L], exact.

    Patches are 10x10 pixels of the canvas, which are 5x5 of a drawing, at every fourth pixel; their
    means are whole numbers."""
    sums = (
        np.pad(pictures.astype(np.int32), ((0, 0), (6, 6), (6, 6)))
        .cumsum(1, dtype=np.int32)
        .cumsum(2, dtype=np.int32)
    )
    corner = [sums[:, r : r + CANVAS : 4, c : c + CANVAS : 4] for r in (0, 10) for c in (0, 10)]
    means = (
        ((corner[3] - corner[2] - corner[1] + corner[0]) // 100)
        .astype(np.int16)
        .reshape(len(pictures), -1)
    )
    distances = np.zeros((len(pictures), len(pictures)))
    for i in range(1, len(pictures)):
        distances[i, :i] = distances[:i, i] = np.abs(means[:i] - means[i]).max(1) / 255.0
    return distances


def nearest_faces(faces: dict[str, list[str]]) -> Array:
    """Distances between letters in the face where each is smallest: [L, L]; 1 without a face."""
    letters = list(faces)
    smallest = np.ones((len(letters), len(letters)))
    for face in _COMPARED:
        indices = [i for i, letter in enumerate(letters) if face in faces[letter]]
        if indices:
            pairs, pictures = (
                np.ix_(indices, indices),
                np.stack([upright(letters[i], face) for i in indices]),
            )
            smallest[pairs] = np.minimum(smallest[pairs], _distances(pictures))
    return smallest


def alphabet(faces: dict[str, list[str]]) -> Alphabet:
    """The letters that are classes, in order of code points.

    Letters that coincide are merged, transitively, with the first of them, whose script the class
    belongs to; then a class that is too near to an earlier one is dropped. Both act across scripts,
    so that no shape is in two splits."""
    letters, distances = list(faces), nearest_faces(faces)
    first = list(range(len(letters)))  # the earliest letter that each coincides with

    def root(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    for i, j in np.argwhere(np.tril(distances < COINCIDE, -1)).tolist():
        high, low = max(root(i), root(j)), min(root(i), root(j))
        first[high] = low
    roots = [i for i in range(len(letters)) if first[i] == i]
    split = np.array([split_of(letter) for letter in letters])
    unique: list[int] = []
    for i in roots:
        if (distances[i, unique] >= np.where(split[unique] == split[i], DISTINCT, APART)).all():
            unique.append(i)
    return Alphabet(
        [letters[i] for i in unique],
        len(letters),
        len(letters) - len(roots),
        len(roots) - len(unique),
    )


def _spline(points: int) -> Array:
    """Cubic B-spline weights from evenly spaced control points to the 28 pixels: [28, points]."""
    position = (np.arange(SIDE) + 0.5) / SIDE * (points - 3) + 1.0
    distance = np.abs(position[:, None] - np.arange(points)[None, :])
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2.0 - distance) ** 3 / 6
    return np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))


def _affine(draws: Array, extent: Array) -> tuple[Array, Array]:
    """Random matrices [B, 2, 2] from canvas (x, y) to drawing, and shifts [B, 2].

    They keep the ink inside. draws [B, 6] in -1..1; extent [B, 2] is half the ink's width and
    height on the canvas."""
    angle, shear = draws[:, 0] * TURN, draws[:, 1] * SHEAR
    wide, high = np.exp(draws[:, 2] * STRETCH), np.exp(draws[:, 3] * STRETCH)
    cos, sin = np.cos(angle), np.sin(angle)
    # Rotation @ shear along x @ stretch, halved: a pixel of the drawing is two of the canvas.
    rows = [cos * wide, (cos * shear - sin) * high, sin * wide, (sin * shear + cos) * high]
    matrix = (np.stack(rows, -1) / 2).reshape(-1, 2, 2)
    # Half width and height of the transformed box: [B, 2].
    reach = (np.abs(matrix) * extent[:, None, :]).sum(-1)
    matrix *= np.minimum(1.0, REACH / reach.max(-1))[:, None, None]
    reach = np.minimum(reach, REACH)
    return matrix, draws[:, 4:6] * np.minimum(SHIFT, REACH - reach)


def _bend(canvas: Array, draws: Array, noise: Array) -> Pixels:
    """Drawings [B, 28, 28] from canvases [B, 56, 56] by bilinear sampling at distorted positions.

    draws [B, 6] for the affine map, noise [B, 2, G, G] the control points of the displacement, all
    in -1..1."""
    count, ink = len(canvas), canvas > 0
    # The ink is centred: half of its columns, then of its rows.
    half = [(CANVAS - 2 * ink.any(axis).argmax(1)) / 2 for axis in (1, 2)]
    matrix, shift = _affine(draws, np.stack(half, -1))
    weights = _spline(noise.shape[-1])
    displacement = (
        weights @ noise @ weights.T
    ) * ELASTIC  # [B, 2, 28, 28] in pixels of the drawing
    axis = np.arange(SIDE) - (SIDE - 1) / 2
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    out = np.stack([columns, rows])[None] + displacement - shift[:, :, None, None]
    inverse = np.linalg.inv(matrix)
    # (x, y) on the canvas: [B, 2, 784].
    points = (inverse @ out.reshape(count, 2, -1)) + (CANVAS - 1) / 2
    return _sample(canvas, points).reshape(count, SIDE, SIDE)


def _sample(canvas: Array, points: Array) -> Pixels:
    """Bilinear values of canvases [B, 56, 56] at (x, y) [B, 2, P], 0 outside: [B, P] uint8."""
    side = CANVAS + 2
    padded = np.pad(canvas, ((0, 0), (1, 1), (1, 1))).reshape(-1)  # zeros around the canvas
    points = np.clip(points + 1.0, 0.0, side - 1.001)
    corner = points.astype(np.int64)
    x, y = (points - corner).transpose(1, 0, 2)
    index = corner[:, 1] * side + corner[:, 0] + np.arange(len(canvas))[:, None] * side * side
    top = padded[index] * (1 - x) + padded[index + 1] * x
    bottom = padded[index + side] * (1 - x) + padded[index + side + 1] * x
    values: Pixels = np.clip(np.rint(top * (1 - y) + bottom * y), 0, 255).astype(np.uint8)
    return values


def _soften(canvas: Array) -> Array:
    """Canvases [B, 56, 56] blurred by (1, 2, 1) / 4 along both axes, before downsampling by 2."""
    padded = np.pad(canvas, ((0, 0), (1, 1), (1, 1)))
    blurred = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return (blurred[:, :, :-2] + 2 * blurred[:, :, 1:-1] + blurred[:, :, 2:]) / 4


def drawings(letter: str, faces: list[str], seed: int) -> Pixels:
    """The 20 drawings of a letter, a function of the letter and the seed: [20, 28, 28].

    All faces are used equally often, to within one."""
    key = rng.fold_in(seed, "glyphs", ord(letter))
    order = rng.permutation(rng.fold_in(key, "faces"), len(faces)).tolist()
    pictures = [upright(letter, faces[order[i % len(faces)]]) for i in range(DRAWINGS)]
    canvas = _soften(np.stack(pictures).astype(np.float64))
    draws = rng.uniform(rng.fold_in(key, "affine"), (DRAWINGS, 6), -1.0, 1.0, torch.float64).numpy()
    noise = rng.uniform(
        rng.fold_in(key, "elastic"), (DRAWINGS, 2, GRID, GRID), -1.0, 1.0, torch.float64
    ).numpy()
    return _bend(canvas, draws, noise)


def render(seed: int) -> Rendered:
    """Render every class: a few seconds on one core."""
    faces = faces_of_letters()
    letters = alphabet(faces).letters
    images = np.stack([drawings(letter, faces[letter], seed) for letter in letters])
    return Rendered(images, letters, [script_of(letter) or "" for letter in letters])
