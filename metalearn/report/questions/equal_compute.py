"""Which method is best at equal total compute?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.costs import learning_cost, up_front_cost
from metalearn.results.factors import run_family
from metalearn.results.records import Group, Json
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
    spent = (rows.results.get("equal_compute") or {"budgets": []})["budgets"]
    return {
        "lacking_families": [words for name, words in FAMILIES.items() if name not in families],
        "tuned_late": [row for row in budgets if row.get("tuned_after_training")],
        "best_at_budget": [best(column, default=None) for column in columns],
        "shown_budgets": [n for n, column in enumerate(columns[: len(spent)]) if column],
        "without_score": {group.label: _lacks(group) for group in groups},
    }


def _lacks(group: Group) -> str:
    """Return what a method lacks for a score at any budget; empty if nothing."""
    if any(
        up_front_cost(run, "flops") is None or learning_cost(run, "flops") is None
        for run in group.runs
    ):
        return "FLOPs not counted"
    scored = [
        any(line.get(run.metric) is not None for line in run.valid("valid")) for run in group.runs
    ]
    return "" if all(scored) else "no validation score"
