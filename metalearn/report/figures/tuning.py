"""The best validation score against the number of tuning trials."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.report.figures.axes import (
    FigureData,
    array,
    by_label,
    direction,
    empty_figure,
    end_labels,
    metric_name,
    score_scale,
    title,
)
from metalearn.report.figures.style import styles, with_style


@with_style
def tuning_figure(data: FigureData) -> Figure | None:
    """Draw each row's best score on validation tasks so far; None if no row made two trials."""
    groups, results = data
    rows = by_label(results, "tuning")
    series = {label: array(row.get("best_so_far") or []) for label, row in rows.items()}
    tuned_groups = [g for g in groups if np.isfinite(series.get(g.label, array([]))[-1:]).any()]
    if not any(len(series[group.label]) > 1 for group in tuned_groups):
        return None
    figure, axes = empty_figure()
    style_of, ends = styles(groups), []
    last = max(len(series[group.label]) for group in tuned_groups)
    for group in tuned_groups:
        style, heights = style_of[group.label], series[group.label] * score_scale(group)
        heights = np.append(heights, [heights[-1]] * (last - len(heights)))
        places = np.arange(1, last + 1)
        axes.step(places, heights, where="post", color=style.color, lw=1.6, marker=style.marker)
        ends.append((group.label, float(heights[-1])))
    title(axes, f"best {metric_name(groups)} of validation tasks, {direction(groups)}")
    axes.set_xlim(1, last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("tuning trials")
    end_labels(axes, ends, style_of)
    return figure
