"""Did a search find anything, or only select noise?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.records import Json


@section("Did a search find anything, or only select noise?", template="noise.html.j2")
def noise(rows: Section, pages: Sequence[Section]) -> Json:
    """What searches and tuning selected."""
    most = max((row["trials"] for row in rows.results.get("tuning") or []), default=0)
    return {"tuning_points": [2**power for power in range(12) if 2**power < most]}
