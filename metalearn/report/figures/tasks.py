"""Test tasks of points as a figure."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from metalearn.report.figures.style import FONT, GREY, INK, PALETTE, SIZE, Drawing, with_style
from metalearn.results.records import Array

_POINTS = ("support_x", "support_y", "query_x", "query_y")


@with_style
def points_figure(episodes: dict[str, Array]) -> Figure:
    """Draw test tasks of points: support and queries, the first coordinate of x and of y."""
    count = len(episodes["support_x"])
    figure = Drawing((SIZE[0], 2.2), layout="constrained")
    grid = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(grid.flat):
        points = [
            episodes[name][place].reshape(len(episodes[name][place]), -1)[:, 0] for name in _POINTS
        ]
        order = np.argsort(points[2])
        axes.plot(
            points[2][order],
            points[3][order],
            color=GREY,
            lw=1,
            marker=".",
            ms=3,
            label="query",
        )
        axes.plot(points[0], points[1], "o", color=PALETTE[1], ms=4.5, mew=0, label="support")
        axes.set_title(f"task {place + 1}", loc="left", size="medium", color=INK)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    figure.supxlabel("x", size=FONT)
    figure.supylabel("y", size=FONT)
    return figure
