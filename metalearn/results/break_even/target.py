"""The target: as the experiment says, else from validation tasks, never from test tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metalearn.evaluate.statistics.students_t import t_quantile
from metalearn.evaluate.targets import from_validation
from metalearn.results.cost_checks import Check
from metalearn.results.records import Group, Json, Run, mean

SHARE = 0.9
# From 18 tasks on the 95 % interval of a mean extends less than half a standard deviation between
# tasks to each side; that of 3 tasks extends 2.5 deviations.
TASKS = 20


def choose_target(groups: Sequence[Group]) -> Json | None:
    """Return {"metric", "value", "why"}, or None without a named target or validation scores.

    A target from validation tasks also has `label`, the method whose score it is, and the counts
    of `validation_tasks`."""
    target = _named_target(groups[0].first)
    if target is not None:
        return {**target, "why": "named in the experiment"}
    up = groups[0].higher_better
    scores = {group.label: mean([_last_validation(run) for run in group.runs]) for group in groups}
    known_scores = {label: value for label, value in scores.items() if value is not None}
    if not known_scores:
        return None
    label = (max if up else min)(known_scores, key=lambda name: known_scores[name])
    value = from_validation(known_scores[label], higher=up, share=SHARE)
    how = f"{SHARE:.0%} of" if up else "a tenth above"
    mean_of = f"{label}'s mean {groups[0].metric} on validation tasks, {known_scores[label]:.4g}"
    why = f"{how} {mean_of}, at the last validation: the best of all methods"
    chosen = next(group for group in groups if group.label == label)
    return {
        "metric": groups[0].metric,
        "value": round(value, 6),
        "why": why,
        "label": label,
        **validation_tasks(chosen),
    }


def validation_tasks(group: Group) -> Json:
    """Return `tasks` that a mean validation score of all seeds is over, and their `pool`.

    `pool` is the number of different groups or sets of classes that they are sampled from, the
    smallest of the seeds; None if it was not recorded."""
    counts = [((run.config.get("run") or {}).get("validate") or {}) for run in group.runs]
    episodes = [count.get("episodes") for count in counts]
    pools = [(run.result.get("validation") or {}).get("pool") for run in group.runs]
    known_pools = [pool for pool in pools if pool is not None]
    return {
        "tasks": None if None in episodes else sum(int(count or 0) for count in episodes),
        "pool": min(known_pools) if len(known_pools) == len(pools) else None,
    }


def check_target(groups: Sequence[Group], target: Json | None) -> Check:
    """Check that a target from validation tasks rests on enough different ones."""
    name = f"target from at least {TASKS} validation tasks"
    if target is None or target.get("label") is None:
        why = "there is none" if target is None else "it is named in the experiment"
        return Check(name, True, f"does not apply: {why}")
    tasks, pool = target["tasks"], target["pool"]
    counts = [count for count in (tasks, pool) if count is not None]
    if not counts:
        return Check(name, True, "does not apply: the number of validation tasks is not on record")
    kind = "sets of classes" if groups[0].higher_better else "groups"
    text = f"{tasks} tasks" if tasks is not None else "tasks"
    text += f" of {pool} different {kind}" if pool is not None else ""
    text = f"{target['label']} was validated on {text}"
    fewest = min(counts)
    if fewest >= TASKS:
        return Check(name, True, text)
    advice = "set evaluate.target, or validate on more"
    if fewest < 2:
        return Check(name, False, f"{text}, whose variation is not known: {advice}")
    width = float(t_quantile(0.975, fewest - 1)) / math.sqrt(fewest)
    unsure = f"{text}: the 95 % interval of a mean over {fewest} extends {width:.1f} standard"
    unsure += " deviations between tasks to each side, and the target is as uncertain"
    return Check(name, False, f"{unsure}; {advice}")


def target_levels(groups: Sequence[Group], target: Json | None) -> list[float]:
    """Return the levels of break-even counts: `evaluate.targets`, else the target alone.

    A level of accuracy is rounded up to the next multiple of 1 / queries, which is what it means
    for the score of one task."""
    if target is None:
        return []
    run = groups[0].first
    levels = (run.config.get("evaluate") or {}).get("targets") or []
    size = int(run.task.get("ways") or 0) * int(run.task.get("queries") or 0)
    on_grid = target["metric"] == "accuracy" and size > 0 and "ranges" not in run.task
    rounded_levels = [
        math.ceil(float(level) * size - 1e-6) / size if on_grid else level for level in levels
    ]
    return sorted({float(level) for level in rounded_levels}) or [float(target["value"])]


def primary_level(target: Json, levels: Sequence[float]) -> float:
    """Return the level whose break-even counts have verdicts: the one next to the target.

    Like the levels and the target, it does not depend on test tasks."""
    return min(levels, key=lambda level: abs(level - float(target["value"])))


def _named_target(run: Run) -> Json | None:
    target = (run.config.get("evaluate") or {}).get("target")
    if not isinstance(target, dict):
        return None
    return {"metric": target["metric"], "value": float(target["value"])}


def _last_validation(run: Run) -> float | None:
    """Return the last validation score; the best of several is too high by chance."""
    lines = [line for line in run.valid("valid") if line.get(run.metric) is not None]
    return float(lines[-1][run.metric]) if lines else None
