"""After how many new tasks does a higher up-front cost break even?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.matrices import break_even_matrix, solved_shares, uncounted
from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.break_even.counts import NO_TIMING, QUERY_LEVEL
from metalearn.results.costs import AXES
from metalearn.results.records import Json


@section(
    "After how many new tasks does a higher up-front cost break even?",
    template="break_even.html.j2",
)
def break_even(rows: Section, pages: Sequence[Section]) -> Json:
    """Break-even counts of pairs: verdicts at the level of the target, estimates at others."""
    target, counts_of_pairs = rows.results["target"] or {}, rows.results["break_even"]
    metric, level = target.get("metric", "accuracy"), _level_of_target(counts_of_pairs, target)
    at_level = [row for row in counts_of_pairs if row.get("level") in (level, None)]
    by_queries = [row for row in counts_of_pairs if row.get("by_queries")]
    shares = solved_shares(rows.results)
    scopes = by_queries[0]["by_queries"] if by_queries else []
    return {
        "matrices": {
            axis: break_even_matrix(rows.groups, at_level, axis, metric, shares) for axis in AXES
        },
        "uncounted": lambda row: uncounted(row, shares),
        "matrix_level": target.get("value") if level is None else level,
        "tested": {axis: _count_tests(counts_of_pairs, axis) for axis in AXES},
        "by_queries": by_queries,
        "tasks_of": {group.label: group.test_tasks for group in rows.groups},
        "query_level": 100 * QUERY_LEVEL,
        "query_heads": [_head(scope) for scope in scopes],
    }


def _head(scope: Json) -> tuple[str, str]:
    """Return the two lines above a column of counts by number of queries."""
    count = scope["queries"]
    name, unit = ("as tested", "") if count is None else (f"{count:,}", "queries")
    excluded = "" if scope.get("with_given", True) else "pretraining excluded"
    return name, ", ".join(filter(None, ["query" if count == 1 else unit, excluded]))


def _count_tests(rows: Sequence[Json], axis: str) -> int:
    return sum(_was_tested(row) for row in rows if row["axis"] == axis)


def _was_tested(row: Json) -> bool:
    """Return whether intervals decided the verdict of a row, or could have decided it.

    "not_reached" is decided by those of the fractions of solved tasks, and has no number of
    tasks."""
    may_have = row.get("contrast", True) and row.get("primary", True)
    has_intervals = row["verdict"] in ("same", "not_reached") or row["ci95"] is not None
    return bool(may_have and has_intervals and not row.get("why", "").startswith(NO_TIMING))


def _level_of_target(rows: Sequence[Json], target: Json) -> float | None:
    """Return the level of the file that is nearest to the target; None if rows have no level."""
    levels = sorted({float(row["level"]) for row in rows if row.get("level") is not None})
    return min(levels, key=lambda level: abs(level - target["value"]), default=None)
