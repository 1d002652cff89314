"""A decision map with one word per cell, for files that keep it; and the lists again.

A word is the index of the winner in `methods`, or `-` without a winner. `@STEP` follows if the
winner stops after that step of its meta-training, then `?` if the cell is not settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = (
    *("axis", "metric", "tasks", "targets", "queries", "as_tested"),
    *("left_out", "unsettled", "pretraining", "along"),
)
WORD = r"(\d+(@\d+)?|-)\??"
CELLS = rf"^{WORD}( {WORD})*$"  # of one target, by number of tasks


def pack_map(grid: Mapping[str, Any]) -> dict[str, Any]:
    """Return a map of comparison.json without `share`, the fractions of bootstrap samples."""
    winner, settled = grid["winner"], grid["settled"]
    names = dict.fromkeys(name for part in winner for row in part for name in row)
    methods = [name for name in names if name is not None]
    stops = grid.get("stops_after") or [[[None] * len(row) for row in part] for part in winner]
    words: list[list[str]] = []
    for part in zip(winner, stops, settled, strict=True):
        rows = (zip(*row, strict=True) for row in zip(*part, strict=True))
        words.append([" ".join(_write(methods, *cell) for cell in row) for row in rows])
    fields = {name: grid[name] for name in FIELDS if grid.get(name) is not None}
    return {**fields, "methods": methods, "cells": words}


def unpack_map(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a packed map as in comparison.json, without `share`."""
    methods = packed["methods"]
    cells = [
        [[_read(methods, word) for word in row.split()] for row in part] for part in packed["cells"]
    ]
    names = ("winner", "stops_after", "settled")
    lists = {
        name: [[[cell[place] for cell in row] for row in part] for part in cells]
        for place, name in enumerate(names)
        if name != "stops_after" or packed.get("along")
    }
    return {name: packed[name] for name in FIELDS if name in packed} | lists


def _write(methods: list[str], name: str | None, step: int | None, settled: bool) -> str:
    winner = "-" if name is None else str(methods.index(name))
    return winner + ("" if step is None else f"@{step}") + ("" if settled else "?")


def _read(methods: list[str], word: str) -> tuple[str | None, int | None, bool]:
    """Return the winner of a cell, the step after which it stops, and whether it is settled."""
    winner, _, step = word.rstrip("?").partition("@")
    name = None if winner == "-" else methods[int(winner)]
    return name, int(step) if step else None, not word.endswith("?")
