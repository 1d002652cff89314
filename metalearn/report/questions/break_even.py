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
    common = rows.results.get("break_even_common") or rows.results["break_even"]
    by_queries = [row for row in rows.results["break_even"] if row.get("by_queries")]
    counts = [one["queries"] for one in by_queries[0]["by_queries"]] if by_queries else []
    metric = (rows.results["target"] or {}).get("metric", "accuracy")
    return {
        "matrices": {axis: break_even_matrix(rows.groups, common, axis, metric) for axis in AXES},
        "by_queries": by_queries,
        "query_heads": [(f"{count:,}", "query" if count == 1 else "queries") for count in counts],
    }
