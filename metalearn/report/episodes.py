"""The first test tasks as pictures: what a learner is given and what it is asked."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metalearn.report.figures.tasks import points_figure
from metalearn.results.records import Array, Group, Json, Run
from metalearn.storage.files import read_npz

NAMES = ("support_x", "support_y", "query_x", "query_y")
SUPPORT_SHOWN, QUERIES_SHOWN = 5, 5  # a class and kind; the rest would repeat


def sample_tasks(group: Group) -> Json | None:
    """Return the first test episodes as pictures or a figure of `points`, or None without them."""
    arrays = _load(group.first)
    if not arrays:
        return None
    return _images(arrays) if arrays["support_x"].ndim == 5 else {"points": points_figure(arrays)}


def _load(run: Run) -> dict[str, Array]:
    file = run.path / "episodes.npz"
    if not file.exists():
        return {}
    contents = read_npz(file)
    arrays = {name: contents[name] for name in NAMES if name in contents}
    return arrays if len(arrays) == len(NAMES) and _are_tasks(arrays) else {}


def _are_tasks(arrays: dict[str, Array]) -> bool:
    """Return whether these are tasks: [T, M, ...] inputs, [T, M] or [T, M, C] targets, all
    finite."""
    shapes = [arrays[name].shape for name in NAMES]
    pairs = zip(shapes[::2], shapes[1::2])
    well_shaped = all(
        len(x) >= 3 and len(y) >= 2 and x[:2] == y[:2] and 0 not in (*x, *y) for x, y in pairs
    )
    same_count = len({shape[0] for shape in shapes}) == 1
    return well_shaped and same_count and all(np.isfinite(one).all() for one in arrays.values())


def _images(arrays: dict[str, Array]) -> Json:
    count = len(arrays["support_x"])
    classes = max(len(np.unique(arrays["query_y"][0])), 1)
    return {
        "tasks": [_task([arrays[name][place] for name in NAMES]) for place in range(count)],
        "queries": max(len(arrays["query_y"][0]) // classes, 1),
        "shown": QUERIES_SHOWN,
        "inverted": arrays["support_x"].shape[2] == 1,
    }


def _task(parts: list[Array]) -> Json:
    """Return class numbers from 1, and for support and query the images of every class."""
    support_x, support_y, query_x, query_y = parts
    classes = sorted({int(label) for label in support_y})
    kinds = (
        ("given", support_x, support_y, SUPPORT_SHOWN),
        ("asked", query_x, query_y, QUERIES_SHOWN),
    )
    rows = [
        (name, [(label + 1, _column(x[y == label][:most])) for label in classes])
        for name, x, y, most in kinds
    ]
    return {"labels": [label + 1 for label in classes], "rows": rows}


def _column(images: Array) -> str:
    """Return images [B, channels, H, W] in one column as PNG in base64; empty without any."""
    if not len(images):
        return ""
    pixels: NDArray[np.uint8] = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8)
    column = pixels.transpose(0, 2, 3, 1).reshape(-1, pixels.shape[3], pixels.shape[1])
    single = column.shape[2] == 1
    picture = Image.fromarray(255 - column[:, :, 0] if single else column[:, :, :3])
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
