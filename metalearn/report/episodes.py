"""The first test tasks as pictures: what a learner is given and what it is asked."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metalearn.report.figures import curves
from metalearn.report.html import plot
from metalearn.results.records import Array, Group, Run
from metalearn.storage.files import read_npz

NAMES = ("support_x", "support_y", "query_x", "query_y")
SUPPORT_SHOWN, QUERIES_SHOWN = 5, 5  # a class and kind; the rest would repeat


def episodes(group: Group) -> str:
    """HTML with the first test episodes; empty where a run did not keep them."""
    arrays = _load(group.first)
    if not arrays:
        return ""
    if arrays["support_x"].ndim == 5:
        return _images(arrays)
    kinds = (("wide", curves.WIDE), ("narrow", curves.NARROW))
    wide, narrow = (
        curves.inline(
            curves.svg(curves.points_figure(arrays, size), f"tasks-{name}"), "Sample test tasks"
        )
        for name, size in kinds
    )
    return plot(
        wide,
        narrow,
        "The first test tasks: points given to the learner, and points it is asked for.",
    )


def _load(run: Run) -> dict[str, Array]:
    file = run.path / "episodes.npz"
    if not file.exists():
        return {}
    found = read_npz(file)
    arrays = {name: found[name] for name in NAMES if name in found}
    return arrays if len(arrays) == len(NAMES) and _fit(arrays) else {}


def _fit(arrays: dict[str, Array]) -> bool:
    """Whether these are tasks: [T, M, ...] inputs, [T, M] or [T, M, C] answers, finite numbers."""
    shapes = [arrays[name].shape for name in NAMES]
    pairs = zip(shapes[::2], shapes[1::2])
    whole = all(
        len(x) >= 3 and len(y) >= 2 and x[:2] == y[:2] and 0 not in (*x, *y) for x, y in pairs
    )
    return (
        whole
        and len({shape[0] for shape in shapes}) == 1
        and all(np.isfinite(one).all() for one in arrays.values())
    )


def _images(arrays: dict[str, Array]) -> str:
    tasks = [
        _task(place, [arrays[name][place] for name in NAMES])
        for place in range(len(arrays["support_x"]))
    ]
    most = max(len(arrays["query_y"][0]) // max(len(np.unique(arrays["query_y"][0])), 1), 1)
    note = f"Each column is one class. Support images are given with their class; {most} quer"
    note += "y" if most == 1 else "ies"
    note += (
        f" per class must be told{f', {QUERIES_SHOWN} are shown' if most > QUERIES_SHOWN else ''}."
    )
    ink = " Ink, bright in the data, is drawn dark." if arrays["support_x"].shape[2] == 1 else ""
    return f'<div class="tasks">\n{"".join(tasks)}\n</div>\n<p class="note">{note}{ink}</p>'


def _task(place: int, parts: list[Array]) -> str:
    support_x, support_y, query_x, query_y = parts
    classes = sorted({int(label) for label in support_y})
    head = "".join(f"<th>{label + 1}</th>" for label in classes)
    rows = []
    for name, x, y, most in (
        ("given", support_x, support_y, SUPPORT_SHOWN),
        ("asked", query_x, query_y, QUERIES_SHOWN),
    ):
        cells = "".join(
            f"<td>{_column(x[y == label][:most], f'class {label + 1}, {name}')}</td>"
            for label in classes
        )
        rows.append(f"<tr><td>{name}</td>{cells}</tr>")
    return (
        f'<div class="task"><table>\n<tr><th>task '
        f"{place + 1}</th>{head}</tr>\n{''.join(rows)}\n</table></div>\n"
    )


def _column(images: Array, description: str) -> str:
    """Images [B, channels, H, W] under each other as one PNG."""
    if not len(images):
        return ""
    pixels: NDArray[np.uint8] = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8)
    column = pixels.transpose(0, 2, 3, 1).reshape(-1, pixels.shape[3], pixels.shape[1])
    single = column.shape[2] == 1
    picture = Image.fromarray(255 - column[:, :, 0] if single else column[:, :, :3])
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{description}" src="data:image/png;base64,{data}">'
