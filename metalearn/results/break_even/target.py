"""The target: as the experiment says, else from validation tasks, never from test tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metalearn.evaluate.targets import from_validation
from metalearn.results.records import Group, Json, Run, mean

SHARE = 0.9


def choose_target(groups: Sequence[Group]) -> Json | None:
    """Return {"metric", "value", "why"}, or None without a named target or validation scores."""
    target = _named_target(groups[0].first)
    if target is not None:
        return {**target, "why": "named in the experiment"}
    up = groups[0].higher_better
    scores = {
        group.label: mean([_best_validation(run, up) for run in group.runs]) for group in groups
    }
    known_scores = {label: value for label, value in scores.items() if value is not None}
    if not known_scores:
        return None
    label = (max if up else min)(known_scores, key=lambda name: known_scores[name])
    value = from_validation(known_scores[label], higher=up, share=SHARE)
    how = f"{SHARE:.0%} of" if up else "a tenth above"
    mean_of = f"{label}'s mean {groups[0].metric} on validation tasks, {known_scores[label]:.4g}"
    why = f"{how} {mean_of}: the best of all methods"
    return {"metric": groups[0].metric, "value": round(value, 6), "why": why}


def target_levels(groups: Sequence[Group], target: Json | None) -> list[float]:
    """Return the levels of break-even counts: `evaluate.targets`, else the target alone.

    A level of accuracy is rounded up to the next multiple of 1 / queries, which is what it means
    for the score of one task."""
    if target is None:
        return []
    run = groups[0].first
    levels = (run.config.get("evaluate") or {}).get("targets") or []
    size = int(run.task.get("ways") or 0) * int(run.task.get("queries") or 0)
    on_grid = target["metric"] == "accuracy" and size > 0 and not run.task.get("ranges")
    rounded_levels = [
        math.ceil(float(level) * size - 1e-6) / size if on_grid else level for level in levels
    ]
    return sorted({float(level) for level in rounded_levels}) or [float(target["value"])]


def _named_target(run: Run) -> Json | None:
    target = (run.config.get("evaluate") or {}).get("target")
    if not isinstance(target, dict):
        return None
    return {"metric": target["metric"], "value": float(target["value"])}


def _best_validation(run: Run, up: bool) -> float | None:
    """Return the best validation score: that of the checkpoint that was tested."""
    values = [
        float(line[run.metric]) for line in run.valid("valid") if line.get(run.metric) is not None
    ]
    return (max if up else min)(values, default=None)
