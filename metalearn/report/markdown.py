"""Markdown of measurements: tables, and files whose sections are replaced one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from metalearn.storage.files import write_atomic


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None) -> str:
    """Return a table; the first `left` columns are left-aligned, the others right-aligned.

    None: no alignment."""
    marks = ["---"] * len(heads)
    if left is not None:
        marks = [":---" if place < left else "---:" for place in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, marks, *rows))


def image(picture: Path, document: Path, name: str = "") -> str:
    """Return the Markdown of a picture in a text that is stored as `document`."""
    path = os.path.relpath(picture.resolve(), document.resolve().parent)
    return f"![{name or picture.stem}]({Path(path).as_posix()})"


def replace_section(path: Path, name: str, content: str, head: str) -> None:
    """Replace the section with this name, or append it; `head` begins a new file."""
    text = path.read_text(encoding="utf-8") if path.exists() else head
    begin, end = (f"<!-- {what}{name.replace('--', '-')} -->" for what in ("", "end of "))
    section = f"{begin}\n{content}{end}\n"
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end) + r"\n", re.DOTALL)
    if pattern.search(text):
        new = pattern.sub(lambda _: section, text)
    else:
        new = text.rstrip("\n") + "\n\n" + section
    write_atomic(path, new.encode())
