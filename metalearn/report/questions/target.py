"""What fraction of tasks reaches the target within a budget?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.records import Json


@section("What fraction of tasks reaches the target within a budget?", template="target.html.j2")
def target(rows: Section, pages: Sequence[Section]) -> Json:
    """Tasks that reach the target, against the budget."""
    return {}
