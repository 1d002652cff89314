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
    """Pairs that differ in one part alone, with the paired difference of question 1."""
    by_labels = {frozenset((pair["a"], pair["b"])): pair for pair in rows.results["paired"]}
    factors = rows.results.get("factors") or []
    pairs = [by_labels.get(frozenset((row["a"], row["b"])), {}) for row in factors]
    return {
        "factor_pairs": pairs,
        "factors_tested": sum(bool(pair.get("contrast")) for pair in pairs),
        "factors_of_one_seed": sum(len(pair.get("seeds") or ()) == 1 for pair in pairs),
    }
