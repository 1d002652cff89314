"""Results in a terminal and in a notebook: text that shows its lines, tables of cells."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from metalearn.errors import ConfigError


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


class Rows(list[dict[str, Any]]):
    """A list of mappings that shows itself as a table of some of their keys."""

    def __init__(self, rows: Sequence[dict[str, Any]], heads: Sequence[str]) -> None:
        super().__init__(rows)
        self.heads = heads

    def table(self) -> Text:
        """One line a mapping."""
        return columns(cells_of(self, self.heads))

    def to_pandas(self) -> Any:
        """One row a mapping, one column a key."""
        return data_frame(self, "the list")

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return html_table(cells_of(self, self.heads))


def cells_of(rows: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[list[str]]:
    """Heads, then the values of each row under these keys, as text."""
    return [list(heads), *([_shown(row.get(head)) for head in heads] for row in rows)]


def curve_rows(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One mapping a point of the `test` of a result: step, the metrics and their intervals."""
    count = len(test["steps"])
    lists = {key: values for key, values in test.items() if isinstance(values, list)}
    named = {"step": test["steps"]} | {key: lists[key] for key in lists if key != "steps"}
    named = {key: values for key, values in named.items() if len(values) == count}
    return [dict(zip(named, row)) for row in zip(*named.values(), strict=True)]


def data_frame(rows: Sequence[Mapping[str, Any]], plain: str) -> Any:
    """A pandas DataFrame; `plain` names what holds the same without pandas."""
    try:
        import pandas
    except ImportError as error:
        text = f"needs pandas: pip install pandas; {plain} holds the same as plain Python"
        raise ConfigError(("to_pandas", text)) from error
    return pandas.DataFrame(list(rows))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(tag: str, row: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
