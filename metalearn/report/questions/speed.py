"""How fast is a new task learned, with the same labels?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.figures.curves import has_training_curves
from metalearn.report.matrices import paired_matrix
from metalearn.report.points import curve_points
from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.records import Json


@section("How fast is a new task learned, with the same labels?", template="speed.html.j2")
def speed(rows: Section, pages: Sequence[Section]) -> Json:
    """Curves, results, paired differences."""
    groups = rows.groups
    learns = [g.label for g in groups if g.first.traits.get("consumes", "nothing") != "nothing"]
    heads = [run.result["headline"] for run in rows.runs]
    return {
        "differences": paired_matrix(groups, rows.results["paired"], rows.up),
        "curve_points": curve_points(groups, rows.results),
        "several_seeds": any(len(g.runs) > 1 and g.uses_steps for g in groups),
        "most_tasks": max(group.test_tasks for group in groups),
        "nll": any(line.get("nll") is not None for line in rows.lines.values()),
        "calibrated": any(
            line.get("calibration_error") is not None for line in rows.lines.values()
        ),
        "published": any(head.get("published") is not None for head in heads),
        "learners": learns,
        "without_curves": [g.label for g in groups if not has_training_curves(g)],
    }
