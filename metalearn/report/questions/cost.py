"""What did everything cost, and can the comparison be trusted?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.evaluate.cost_block import waiting_share
from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.report.work import BEFORE
from metalearn.results.design.timing import has_search_per_task, slow_rounds
from metalearn.results.records import Json


@section("What did everything cost, and can the comparison be trusted?", template="cost.html.j2")
def cost(rows: Section, pages: Sequence[Section]) -> Json:
    """Costs by phase, machines, checks."""
    devices = {str(group.first.environment.get("device") or "") for group in rows.groups}
    timings = [run.result["timing"] for run in rows.runs if run.result.get("timing")]
    pretrained_rows = [
        {**provenance, "group": group}
        for group in rows.groups
        if (provenance := group.first.result.get("provenance"))
    ]
    return {
        "before": BEFORE,
        "devices": sorted(devices - {""}),
        "timings": timings,
        "slow": {group.label: slow_rounds(group) for group in rows.groups},
        "without_ratio": [g.label for g in rows.groups if has_search_per_task(g)],
        "waiting": [waiting_share(run.cost) for run in rows.runs],
        "pretrained": pretrained_rows,
    }
