"""Figures of a sweep: trials in order, importance, all parameters, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.report.figures.axes import one_panel
from metalearn.report.figures.style import GREY, INK, PALETTE, SIZE, SMALL, SOFT, with_style
from metalearn.report.numbers import word

Json = dict[str, Any]
STATES = {"complete": ("o", "complete"), "pruned": ("x", "stopped early")}
NAMES_SHOWN = 12  # values of a categorical axis that are written out


@dataclass(frozen=True)
class SweepData:
    """The data of a sweep's folder."""

    name: str
    metric: str
    goal: str
    best: int | None
    trials: list[Json]
    # trial -> (meta-step, metric) of each validation
    curves: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)

    @property
    def scored_trials(self) -> list[Json]:
        return [
            trial
            for trial in self.trials
            if trial["value"] is not None and trial["state"] in STATES
        ]

    @property
    def varied_parameters(self) -> list[str]:
        """Parameters that take more than one value."""
        names = list(dict.fromkeys(name for trial in self.trials for name in trial["parameters"]))
        return [
            name
            for name in names
            if len({word(trial["parameters"].get(name)) for trial in self.trials}) > 1
        ]

    def better(self, values: Sequence[float]) -> float:
        return min(values) if self.goal == "minimize" else max(values)


@with_style
def history_figure(sweep: SweepData) -> Figure:
    """Draw every trial's value in order, and the best so far."""
    figure, axes = one_panel()
    for state, (marker, name) in STATES.items():
        points = [trial for trial in sweep.scored_trials if trial["state"] == state]
        if points:
            axes.plot(
                [t["number"] for t in points],
                [t["value"] for t in points],
                marker,
                color=PALETTE[0],
                ms=4.5,
                alpha=0.75,
                label=name,
            )
    complete = [trial for trial in sweep.scored_trials if trial["state"] == "complete"]
    so_far = [
        sweep.better([trial["value"] for trial in complete[: place + 1]])
        for place in range(len(complete))
    ]
    axes.step(
        [trial["number"] for trial in complete],
        so_far,
        where="post",
        color=PALETTE[1],
        lw=1.6,
        label="best so far",
    )
    axes.set_xlabel("trial")
    axes.set_ylabel(sweep.metric)
    _set_limits(axes, sweep, [trial["value"] for trial in sweep.scored_trials])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


@with_style
def importance_figure(sweep: SweepData) -> Figure | None:
    """Draw the fraction of variance that each parameter explains; None if it is unknown."""
    if not sweep.importance:
        return None
    names = sorted(sweep.importance, key=lambda name: sweep.importance[name])
    figure, axes = one_panel((SIZE[0], 0.7 + 0.34 * len(names)))
    bars = axes.barh(
        names, [sweep.importance[name] for name in names], color=PALETTE[0], height=0.6
    )
    axes.bar_label(bars, fmt="%.2f", padding=3, color=INK)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("fraction of variance explained")
    axes.grid(axis="y", visible=False)
    return figure


@with_style
def parallel_figure(sweep: SweepData) -> Figure | None:
    """Draw every trial as a line through its parameters; None without two trials."""
    names, trials = (
        sweep.varied_parameters,
        [trial for trial in sweep.scored_trials if trial["state"] == "complete"],
    )
    if not names or len(trials) < 2:
        return None
    figure, axes = one_panel()
    values = [trial["value"] for trial in trials]
    norm = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1)
    shades = colormaps["viridis" if sweep.goal == "maximize" else "viridis_r"]
    columns = [_column(axes, place, name, trials) for place, name in enumerate(names)]
    last = [float(norm(value)) for value in values]
    order = sorted(range(len(trials)), key=lambda at: values[at], reverse=sweep.goal == "minimize")
    for at in order:  # the best on top
        heights = [*(column[at] for column in columns), last[at]]
        best = trials[at]["number"] == sweep.best
        axes.plot(
            heights,
            color=shades(norm(values[at])),
            lw=2.6 if best else 1.1,
            alpha=1.0 if best else 0.6,
        )
    for end, height in ((norm.vmin, 0.0), (norm.vmax, 1.0)):
        axes.text(len(names) + 0.06, height, f"{end:.4g}", va="center", color=SOFT, size=SMALL)
    axes.set_xticks(
        range(len(names) + 1), [*(name.removeprefix("method.") for name in names), sweep.metric]
    )
    axes.tick_params(axis="x", rotation=0 if len(names) < 4 else 35)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.1, len(names) + 0.45)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GREY, lw=0.8)
    return figure


def _column(axes: Axes, place: int, name: str, trials: Sequence[Json]) -> list[float]:
    """Return the heights of all trials on one axis, and write its ends (or values) next to it.

    Wide ranges are logarithmic."""
    raw = [trial["parameters"].get(name) for trial in trials]
    numbers = all(type(value) in (int, float) for value in raw)
    texts = sorted({word(value) for value in raw})
    if numbers and len(set(raw)) > 4:
        low, high = min(raw), max(raw)
        log = low > 0 and high / low > 20
        scale = (lambda value: math.log(value)) if log else float
        heights = [(scale(value) - scale(low)) / (scale(high) - scale(low)) for value in raw]
        marks = {0.0: word(low), 1.0: word(high)}
    else:
        texts = sorted(texts, key=lambda text: (float(text), text)) if numbers else texts
        level = {text: at / max(1, len(texts) - 1) for at, text in enumerate(texts)}
        heights = [level[word(value)] for value in raw]
        marks = (
            {height: text for text, height in level.items()} if len(texts) <= NAMES_SHOWN else {}
        )
    for height, text in marks.items():
        axes.text(place + 0.04, height, text[:18], va="center", color=SOFT, size=SMALL, zorder=4)
    return heights


@with_style
def curves_figure(sweep: SweepData) -> Figure | None:
    """Draw the metric at every validation; None if no trial has two."""
    if not any(len(curve) > 1 for curve in sweep.curves.values()):
        return None
    figure, axes = one_panel()
    state = {trial["number"]: trial["state"] for trial in sweep.trials}
    for number, curve in sweep.curves.items():
        if number != sweep.best:
            dash = ":" if state.get(number) == "pruned" else "-"
            axes.plot(*np.asarray(curve).T, color=GREY, lw=0.9, ls=dash, alpha=0.7)
    if sweep.best in sweep.curves:
        axes.plot(
            *np.asarray(sweep.curves[sweep.best]).T,
            color=PALETTE[1],
            lw=2,
            label=f"trial {sweep.best}, the best",
        )
        axes.legend(frameon=False)
    axes.set_xlabel("meta-training or pretraining steps")
    axes.set_ylabel(sweep.metric)
    _set_limits(axes, sweep, [value for curve in sweep.curves.values() for _, value in curve])
    return figure


def _set_limits(axes: Axes, sweep: SweepData, values: Sequence[float]) -> None:
    """Set limits that show the good end and most values; diverged values are outside."""
    low, middle, high = (float(np.quantile(values, share)) for share in (0.25, 0.5, 0.75))
    reach = 3 * (high - low) or 0.1 * abs(middle) or 1.0
    inside = [value for value in values if low - reach <= value <= high + reach]
    ends = [sweep.better(values), *inside]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    axes.set_ylim(min(ends) - room, max(ends) + room)
