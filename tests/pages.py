"""A page as a reader of HTML sees it, and the conditions that every page meets."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Reads a page and remembers what does not close, what it would load, and its identifiers."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.words.append(" ")
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_page(path: Path) -> Page:
    """The conditions that every page meets."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.problems and not page.open
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.loads)
    assert all(link[1:] in page.ids for link in page.loads if link.startswith("#"))
    assert not {"script", "link", "iframe"} & page.tags
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert "nan" not in page.text.lower().split()
    return page
