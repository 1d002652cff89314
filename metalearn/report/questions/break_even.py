"""After how many new tasks does a higher up-front cost break even?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.matrices import break_even_matrix
from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.costs import AXES
from metalearn.results.records import Json


@section(
    "After how many new tasks does a higher up-front cost break even?",
    template="break_even.html.j2",
)
def break_even(rows: Section, pages: Sequence[Section]) -> Json:
    """Break-even counts of pairs."""
    found = rows.found.get("break_even_common") or rows.found["break_even"]
    asked = [row for row in rows.found["break_even"] if row.get("by_queries")]
    counts = [one["queries"] for one in asked[0]["by_queries"]] if asked else []
    return {
        "repaid": {axis: break_even_matrix(rows.groups, found, axis) for axis in AXES},
        "asked": asked,
        "query_heads": [(f"{count:,}", "query" if count == 1 else "queries") for count in counts],
    }
