"""The target: as the experiment says, else from validation tasks, never from test tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metalearn.evaluate.targets import from_validation
from metalearn.results.records import Group, Json, Run, mean

SHARE = 0.9


def target_of(groups: Sequence[Group]) -> Json | None:
    """{"metric", "value", "why"}; None without a named target or validation scores."""
    asked = _asked(groups[0].first)
    if asked is not None:
        return {**asked, "why": "named in the experiment"}
    up = groups[0].higher_better
    found = {group.label: mean([_best(run, up) for run in group.runs]) for group in groups}
    known = {label: value for label, value in found.items() if value is not None}
    if not known:
        return None
    label = (max if up else min)(known, key=lambda name: known[name])
    value = from_validation(known[label], higher=up, share=SHARE)
    how = f"{SHARE:.0%} of" if up else "a tenth above"
    mean_of = f"{label}'s mean {groups[0].metric} on validation tasks, {known[label]:.4g}"
    why = f"{how} {mean_of}: the best of all methods"
    return {"metric": groups[0].metric, "value": round(value, 6), "why": why}


def levels_of(groups: Sequence[Group], target: Json | None) -> list[float]:
    """The levels of break-even counts: `evaluate.targets`, else the target alone.

    A level of accuracy is raised to the next multiple of 1 / queries, which is what it means for a
    task's score."""
    if target is None:
        return []
    run = groups[0].first
    named = (run.config.get("evaluate") or {}).get("targets") or []
    size = int(run.task.get("ways") or 0) * int(run.task.get("queries") or 0)
    on_grid = target["metric"] == "accuracy" and size > 0 and not run.task.get("ranges")
    raised = [math.ceil(float(level) * size - 1e-6) / size if on_grid else level for level in named]
    return sorted({float(level) for level in raised}) or [float(target["value"])]


def _asked(run: Run) -> Json | None:
    target = (run.config.get("evaluate") or {}).get("target")
    if not isinstance(target, dict):
        return None
    return {"metric": target["metric"], "value": float(target["value"])}


def _best(run: Run, up: bool) -> float | None:
    """The best validation: the one whose checkpoint was tested."""
    values = [
        float(line[run.metric]) for line in run.valid("valid") if line.get(run.metric) is not None
    ]
    return (max if up else min)(values, default=None)
