"""Results in a terminal and in a notebook: text as lines, and tables of cells."""

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
    """Align rows of cells, the first one the heads, in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return Text("\n".join(line.rstrip() for line in lines))


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells, the first one the heads, as HTML."""
    head, *rest = rows
    lines = [_cells("th", head), *(_cells("td", row) for row in rest)]
    return f"<table>{''.join(lines)}</table>"


class Rows(list[dict[str, Any]]):
    """A list of mappings that shows itself as a table of some of their keys."""

    def __init__(self, rows: Sequence[dict[str, Any]], heads: Sequence[str]) -> None:
        super().__init__(rows)
        self.heads = heads

    def table(self) -> Text:
        """Return one line per mapping."""
        return columns(table_cells(self, self.heads))

    def to_pandas(self) -> Any:
        """Return a DataFrame with one row per mapping and one column per key."""
        return data_frame(self, "the list")

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return html_table(table_cells(self, self.heads))


def table_cells(rows: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[list[str]]:
    """Return the heads, then the values of each row under these keys, as text."""
    return [list(heads), *([_format_cell(row.get(head)) for head in heads] for row in rows)]


def curve_rows(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one mapping per point of the `test` of a result: step, metrics and their intervals."""
    count = len(test["steps"])
    lists = {key: values for key, values in test.items() if isinstance(values, list)}
    series = {"step": test["steps"]} | {key: lists[key] for key in lists if key != "steps"}
    series = {key: values for key, values in series.items() if len(values) == count}
    return [dict(zip(series, row)) for row in zip(*series.values(), strict=True)]


def data_frame(rows: Sequence[Mapping[str, Any]], plain: str) -> Any:
    """Return a pandas DataFrame; `plain` names the same data without pandas."""
    try:
        import pandas
    except ImportError as error:
        text = f"needs pandas: pip install pandas; {plain} returns the same as plain Python"
        raise ConfigError(("to_pandas", text)) from error
    return pandas.DataFrame(list(rows))


def _format_cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(tag: str, row: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
