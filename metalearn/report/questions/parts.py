"""How much do initialization, optimizer and architecture contribute?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.records import Json


@section(
    "How much do initialization, optimizer and architecture contribute?", template="parts.html.j2"
)
def parts(rows: Section, pages: Sequence[Section]) -> Json:
    """Pairs that differ in one part alone."""
    return {}
