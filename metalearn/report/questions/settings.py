"""How does the ranking change with shots and ways?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.report.shift import settings as settings_of
from metalearn.results.records import Json


@section("How does the ranking change with shots and ways?", template="settings.html.j2")
def settings(rows: Section, pages: Sequence[Section]) -> Json:
    """Rankings of all tasks on the page."""
    return {"settings": settings_of(pages)}
