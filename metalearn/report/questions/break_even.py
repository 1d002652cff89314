"""After how many new tasks does a higher up-front cost break even?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.matrices import break_even_matrix
from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.break_even.counts import NO_TIMING
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
        "verdicts": sum(map(_has_verdict, rows.results["break_even"])),
        "by_queries": by_queries,
        "query_heads": [(f"{count:,}", "query" if count == 1 else "queries") for count in counts],
    }


def _has_verdict(row: Json) -> bool:
    """Return whether a verdict was read from the intervals of a row."""
    may_have = row.get("contrast", True) and row.get("primary", True)
    was_read = row["verdict"] == "same" or row["ci95"] is not None
    return bool(may_have and was_read and not row.get("why", "").startswith(NO_TIMING))
