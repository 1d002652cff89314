"""Results in a terminal and in a notebook: text that shows its lines, tables of cells."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Text(str):
    """Lines of text; a notebook and an interactive Python show them as they are."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


def columns(rows: Sequence[Sequence[str]]) -> Text:
    """Rows of cells, the first one the heads, in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return Text("\n".join(line.rstrip() for line in lines))


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the heads, as HTML."""
    head, *rest = rows
    lines = [_cells("th", head), *(_cells("td", row) for row in rest)]
    return f"<table>{''.join(lines)}</table>"


def _cells(tag: str, row: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
