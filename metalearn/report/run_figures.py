"""The figures of one run as images, for loggers that show them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def figures(folder: Path) -> dict[str, Any]:
    """The figures that a report of this run alone has, as pixels."""
    from PIL import Image

    from metalearn.report.figures import curves
    from metalearn.results import records
    from metalearn.results.curves import curves as mean_curves

    groups = records.group([records.load(folder)])
    drawn = {"steps": curves.steps_figure, "training": curves.training_figure}
    found: dict[str, Any] = {}
    for name, draw in drawn.items():
        figure = draw((groups, {"curves": mean_curves(groups)}), curves.WIDE)
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            found[name] = Image.open(buffer)
    return found
