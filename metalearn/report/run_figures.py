"""The figures of one run as images, for loggers that show them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def figures(folder: Path) -> dict[str, Any]:
    """The figures that a report of this run alone has, as pixels."""
    from PIL import Image

    from metalearn.report.figures.curves import steps_figure, training_figure
    from metalearn.results import records
    from metalearn.results.curves import curves

    groups = records.group([records.load(folder)])
    compared = groups, {"curves": curves(groups)}
    found: dict[str, Any] = {}
    for name, draw in {"steps": steps_figure, "training": training_figure}.items():
        figure = draw(compared)
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            found[name] = Image.open(buffer)
    return found
