"""`@section("a question")`: one file a section of the page, of this package or of a plug-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.config.plugins import REPORT_KIND, register

Data = Callable[[Any, Sequence[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """A section of the page: its title, what its template reads, and the template."""

    title: str
    data: Data
    template: str = ""  # Jinja, or the name of a template in templates/questions/; "": a list

    @property
    def name(self) -> str:
        """The name of the function."""
        return str(getattr(self.data, "__name__", self.title))

    @property
    def sentence(self) -> str:
        """The first sentence of the function."""
        return " ".join((self.data.__doc__ or self.title).strip().split("\n\n")[0].split())


def section(title: str, *, template: str = "") -> Callable[[Data], Question]:
    """Decorator that adds a function (rows, pages) -> {name: value} as a section of every report.

    title: the question, which is the heading.
    template: Jinja text, with the filters of the package's own sections (those have the name of a
        file in templates/questions/); default: a list of the names and their values.

    `rows.groups` are the methods of one comparison, best first, each with its runs, and
    `rows.results` is the content of comparison.json; `pages` has the `rows` of every comparison in
    the report. The section appears once the module that defines it is imported: by `--plugin`,
    `plugins:`, or an entry point of metalearn.report.

    >>> @ml.section("How many methods?", template="<p>{{ count }}.</p>")
    ... def how_many(rows, pages):
    ...     return {"count": len(rows.groups)}
    >>> how_many.title
    'How many methods?'
    """

    def mark(function: Data) -> Question:
        question: Question = register(REPORT_KIND, Question(title, function, template))
        return question

    return mark
