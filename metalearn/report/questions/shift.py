"""Do the results hold under a shift to other tasks?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.report.shift import scores_across_sources
from metalearn.results.records import Json


@section("Do the results hold under a shift to other tasks?", template="shift.html.j2")
def shift(rows: Section, pages: Sequence[Section]) -> Json:
    """Runs that were tested on another source."""
    return {"source_scores": scores_across_sources(rows.groups)}
