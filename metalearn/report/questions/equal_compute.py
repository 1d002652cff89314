"""Which method is best at equal total compute?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.factors import run_family
from metalearn.results.records import Json
from metalearn.results.searches import has_search

FAMILIES = {
    "transfer": "plain transfer",
    "searched": "architecture search",
    "scratch": "training from scratch",
}


@section("Which method is best at equal total compute?", template="equal_compute.html.j2")
def equal_compute(rows: Section, pages: Sequence[Section]) -> Json:
    """Rows at equal budgets in all."""
    groups = rows.groups
    families = {
        "searched" if any(map(has_search, group.runs)) else run_family(group.first)
        for group in groups
    }
    budgets = (rows.results.get("equal_compute") or {"rows": []})["rows"]
    columns = [
        [value for value in column if value is not None]
        for column in zip(*(row["values"] for row in budgets))
    ]
    best = max if rows.up else min
    return {
        "lacking_families": [words for name, words in FAMILIES.items() if name not in families],
        "tuned_late": [row for row in budgets if row.get("tuned_after_training")],
        "best_at_budget": [best(column, default=None) for column in columns],
    }
