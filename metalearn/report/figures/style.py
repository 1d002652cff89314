"""The style of every figure: colours, markers, fonts; and its SVG.

Deterministic: a fixed salt for identifiers, no dates; text stays text."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.figure import Figure

from metalearn.results.records import Group

INK, SOFT, GREY = "#1F2328", "#57606A", "#8A9199"
SIZE = (5.0, 3.5)  # inches at 96 a pixel row; a page scales it from 360 to 620 pixels
FONT, SMALL = 9.5, 8.5

# Okabe & Ito's colours, yellow left out (too pale for a line on white), then five of Paul Tol's
# muted ones.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
    "#44AA99",
    "#332288",
)
SCRATCH = "#5B5B5B"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
SHIFT = 3  # in the row of markers, from one use of a colour to the next

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metalearn",
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECEEF0",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}
_FONT = (
    "font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
)


Options = ParamSpec("Options")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Style:
    """Colour, marker and dash of one label, in every figure."""

    color: str
    marker: str
    dash: str


class Drawing(Figure):
    """A figure that shows itself in a notebook."""

    def _repr_svg_(self) -> str:
        return svg(self, "figure")


def darken(color: str) -> str:
    """Return a shade that is readable as text on white."""
    return "#" + "".join(f"{int(int(color[i : i + 2], 16) * 0.72):02X}" for i in (1, 3, 5))


def with_style(draw: Callable[Options, Result]) -> Callable[Options, Result]:
    """Decorator that draws under this file's settings, which act when ticks and texts are made."""

    @functools.wraps(draw)
    def inner(*args: Options.args, **kwargs: Options.kwargs) -> Result:
        with matplotlib.rc_context(RC | {"font.size": FONT}):
            return draw(*args, **kwargs)

    return inner


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Return the style of each label; a method in the palette has the same colour in every report.

    Others take the next free one by name. Once the colours are used up, each is used again with
    another marker and another kind of line."""
    by_label: dict[str, Style] = {}
    free = list(range(len(PALETTE)))
    later = []
    for group in sorted(groups, key=lambda item: (item.label != item.method, item.label)):
        place = group.first.palette_index
        if group.first.family == "scratch" and SCRATCH not in {
            style.color for style in by_label.values()
        }:
            by_label[group.label] = Style(SCRATCH, "o", "--")
        elif place in free:
            free.remove(place)
            by_label[group.label] = Style(PALETTE[place], MARKERS[place], "-")
        else:
            later.append(group.label)
    count, begin = len(PALETTE), len(PALETTE) - len(free)
    for number, label in enumerate(later, begin):
        place, again = free[number - begin] if number < count else number % count, number // count
        marker = MARKERS[(place + SHIFT * again) % len(MARKERS)]
        by_label[label] = Style(PALETTE[place], marker, ("-", ":", "-.", "--")[again % 4])
    return by_label


def svg(figure: Figure, name: str) -> str:
    """Return a standalone SVG whose identifiers begin with `name`, so that a page can have
    several."""
    with matplotlib.rc_context(RC):
        file = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    text = file.getvalue()
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"(font: [^;\"]*?px) 'DejaVu Sans'|font-family: 'DejaVu Sans'", _family, text)


def _family(match: re.Match[str]) -> str:
    return f"{match[1]} sans-serif; {_FONT}" if match[1] else _FONT


def inline(text: str, description: str) -> str:
    """Return the `<svg>` element of a file for a page: without prologue and namespaces,
    scalable."""
    body = text[text.index("<svg") :].strip()
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{description}">{rest}'
