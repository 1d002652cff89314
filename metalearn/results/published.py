"""Measured numbers as in `experiments/results/*.json`, and verdicts against published ones.

Three kinds of file: a `cell` is one number of a paper, measured; a `comparison` is the summary of
one comparison; a `table` is any other measurement. RESULTS.md is made of them alone
(report/results_page.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from metalearn.evaluate import random_effects, stats
from metalearn.evaluate.decision.packed import pack_map
from metalearn.evaluate.random_effects import LEVEL, satterthwaite
from metalearn.evaluate.statistics.students_t import t_quantile
from metalearn.results.costs import learning_cost, up_front_cost
from metalearn.results.records import (
    Group,
    Json,
    Run,
    at,
    group,
    load,
    mean,
    run_directories,
)
from metalearn.results.schema import Comparison, PackedMap
from metalearn.storage.files import read_json
from metalearn.storage.schema import Maybe, Open, Text, check_schema

Verdict = Literal["reproduced", "below", "above", "too wide to tell", "reduced schedule", "not run"]
# Half widths of a measured interval above which an overlap says little: in accuracy, as papers are
# missed by 3 points and more; and relative to a published loss.
WIDEST_ACCURACY = 0.03
WIDEST_LOSS = 0.2
LIKELIHOOD = ("nll", "nll_ci95", "nll_left_out", "calibration_error", "calibration_floor")


class _Result(Open):
    kind: Text
    command: Text
    provenance: Text | None = None


class _Seed(Open):
    seed: int
    value: Maybe
    ci95_tasks: Maybe = None


class LearningCurve(Open):
    """Scores on validation tasks after meta-steps, means over seeds."""

    steps: list[int]
    values: list[float]


class _Likelihood(Open):
    nll: Maybe = None
    nll_ci95: Maybe = None
    nll_left_out: Maybe = None
    calibration_error: Maybe = None
    calibration_floor: Maybe = None


class PublishedNumber(_Result, _Likelihood):
    """One number of a paper, measured."""

    kind: Literal["cell"]
    experiment: Text
    label: Text
    metric: Literal["accuracy", "loss"]
    step: int | None
    value: Maybe
    per_seed: list[_Seed]
    ci95_tasks: Maybe
    ci95_seeds: Maybe
    interval: list[float] | None = None
    tasks: int
    published: float
    published_ci95: Maybe
    source: Text
    schedule: Literal["full", "reduced"]
    validation: LearningCurve | None = None


class _Row(_Likelihood):
    label: Text
    value: Maybe
    ci95_tasks: Maybe
    ci95_seeds: Maybe
    interval: list[float] | None = None
    per_seed: list[Maybe] | None
    flops_before: Maybe
    flops_task: Maybe


class ComparisonResult(_Result):
    """The summary of one comparison."""

    kind: Literal["comparison"]
    experiment: Text
    task: Text
    metric: Literal["accuracy", "loss"]
    seeds: list[int]
    tasks: int
    schedule: Literal["full", "reduced"]
    schedule_why: Text
    rows: list[_Row]
    contrasts: list[dict[str, Any]]
    break_even: list[dict[str, Any]]
    decision_map: PackedMap | None = None  # `free`: pretraining by others costs nothing
    decision_map_seconds: PackedMap | None = None
    decision_map_free: PackedMap | None = None
    decision_map_seconds_free: PackedMap | None = None


MAPS = tuple(name for name in ComparisonResult.model_fields if name.startswith("decision_map"))


class Table(_Result):
    """Any other measurement: cells are texts, or numbers with their intervals."""

    kind: Literal["table"]
    columns: list[Text]
    rows: list[list[Text | dict[str, Maybe]]] = Field(min_length=1)


KINDS: dict[str, type[Open]] = {
    "cell": PublishedNumber,
    "comparison": ComparisonResult,
    "table": Table,
}


def read_results(folder: Path) -> dict[str, Json]:
    """Return every result file of a folder by name. Raises ConfigError if one is damaged."""
    results = {}
    for file in sorted(folder.glob("*.json")):
        data = read_json(file)
        kind = data.get("kind") if isinstance(data, dict) else None
        results[file.stem] = check_schema(KINDS.get(str(kind), _Result), data, file)
    return results


def verdict(cell: Mapping[str, Any] | None) -> Verdict:
    """Return how a measured number compares with the published one.

    `reproduced` if both 95 % intervals overlap; else `below` or `above`. If they overlap, and the
    measured one is too wide to exclude a number that is far from the published one, `too wide to
    tell`. The measured interval is over seeds and tasks; with one seed over tasks alone. A reduced
    schedule has no verdict."""
    if cell is None or cell["value"] is None:
        return "not run"
    if cell["schedule"] == "reduced":
        return "reduced schedule"
    low, high = cell.get("interval") or _interval_over_both(cell)
    published, half = cell["published"], cell["published_ci95"] or 0.0
    if high < published - half:
        return "below"
    if low > published + half:
        return "above"
    widest = WIDEST_ACCURACY if cell["metric"] == "accuracy" else WIDEST_LOSS * abs(published)
    return "reproduced" if (high - low) / 2 <= widest * (1 + 1e-9) else "too wide to tell"


def _interval_over_both(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Return the interval over seeds and tasks from the half widths over each.

    The variances of both are added, the residual one twice, on Satterthwaite's degrees of freedom;
    the interval is at least as wide as either."""
    seeds, tasks = cell["ci95_seeds"] or 0.0, cell["ci95_tasks"] or 0.0
    halves, freedoms = [seeds, tasks], [len(cell["per_seed"]) - 1.0, cell["tasks"] - 1.0]
    parts = [
        ((half / float(t_quantile((1 + LEVEL) / 2, freedom))) ** 2, freedom)
        for half, freedom in zip(halves, freedoms)
        if half and freedom >= 1
    ]
    variance = np.asarray(sum(part for part, _ in parts))
    if parts:
        quantile = t_quantile((1 + LEVEL) / 2, satterthwaite(variance, parts))
        halves.append(float(quantile * np.sqrt(variance)))
    return cell["value"] - max(halves), cell["value"] + max(halves)


def cell_result(
    row: Group, step: int, published: float, command: str, reduced: str = "", departures: str = ""
) -> Json:
    """Return one published number, a row at one step. A loss excludes tasks that diverged.

    `reduced`: why the schedule is not the published one; `departures`: what else differs."""
    first, metric, head = row.first, row.metric, row.first.result["headline"]
    facts, point = first.result.get("facts") or {}, first.steps.index(step)
    diverged_shares = [at(run.test.get("diverged"), point) for run in row.runs]
    use_converged = metric == "loss" and any(diverged_shares) and "loss_converged" in first.test
    name = "loss_converged" if use_converged else metric
    values = [at(run.test.get(name), point) for run in row.runs]
    halves = [at(run.test.get(f"{name}_ci95"), point) for run in row.runs]
    return {
        **_schedule(reduced, departures, facts.get("pixels", "")),
        "experiment": str(first.result.get("experiment")),
        "label": row.label,
        "metric": metric,
        "step": step,
        "value": mean(values),
        "per_seed": [
            {"seed": run.seed, "value": value, "ci95_tasks": half, "diverged": share}
            for run, value, half, share in zip(row.runs, values, halves, diverged_shares)
        ],
        "ci95_tasks": max((half for half in halves if half is not None), default=None),
        "ci95_seeds": stats.seeds_ci95(values),
        "interval": None if use_converged else _interval_over_seeds(row, metric, point),
        "converged_only": use_converged,
        **_likelihood(row, point),
        "tasks": row.test_tasks,
        "normalisation": first.result.get("normalisation"),
        "published": published,
        "published_ci95": head.get("published_ci95") if step == head["step"] else None,
        "source": head.get("source") or "",
        "command": command,
        "seconds": [run.result.get("seconds") for run in row.runs],
        "flops": mean([up_front_cost(run, "flops") for run in row.runs]),
        "validation": _learning_curve(row),
        **_machine(first),
    }


def _likelihood(row: Group, point: int) -> Json:
    """Return what the runs have of LIKELIHOOD at a point: means, and the widest interval."""
    columns = {name: [at(run.test.get(name), point) for run in row.runs] for name in LIKELIHOOD}
    values = {name: mean(column) for name, column in columns.items()}
    if values["nll_ci95"] is not None:
        values["nll_ci95"] = max(half for half in columns["nll_ci95"] if half is not None)
    return {name: value for name, value in values.items() if value is not None}


def _interval_over_seeds(row: Group, metric: str, point: int) -> list[float] | None:
    """Return the interval of a score for new seeds and new tasks; None with too few seeds."""
    scores = row.pooled_scores(metric)  # [S, E, P]
    if scores is None:
        return None
    estimate = random_effects.estimate(scores[:, :, point])
    if not estimate.ci95 or estimate.seeds < random_effects.LEAST_SEEDS:
        return None
    return list(estimate.ci95)


def _learning_curve(row: Group) -> Json | None:
    """Return the scores on validation tasks at the meta-steps of all seeds, or None."""
    curves = [
        {int(point["step"]): point.get(row.metric) for point in run.valid("valid")}
        for run in row.runs
    ]
    steps = [step for step in curves[0] if all(curve.get(step) is not None for curve in curves)]
    values = [mean([curve[step] for curve in curves]) for step in steps]
    return {"steps": steps, "values": values} if len(steps) > 1 else None


def single_cell(cell: Json, row: Group) -> Json | None:
    """Return the same row with its best checkpoint alone if `cell` is an ensemble's; else None."""
    tests: list[Json] = [run.result.get("single") or {} for run in row.runs]
    if not all(one.get("step") == cell["step"] for one in tests):
        return None
    values, halves = ([one[name] for one in tests] for name in ("value", "ci95"))
    why = (cell["schedule_why"], "one checkpoint, where the published number is an ensemble's")
    rest = {name: value for name, value in cell.items() if name not in LIKELIHOOD}
    return {
        **rest,
        "label": f"{cell['label']}, best checkpoint alone",
        "schedule": "reduced",
        "schedule_why": "; ".join(filter(None, why)),
        "value": mean(values),
        "per_seed": [
            {"seed": run.seed, "value": value, "ci95_tasks": half}
            for run, value, half in zip(row.runs, values, halves)
        ],
        "ci95_tasks": max((half for half in halves if half is not None), default=None),
        "ci95_seeds": stats.seeds_ci95(values),
        "interval": None,
        "converged_only": False,
    }


def describe_left_out(cell: Mapping[str, Any]) -> str:
    """Return a note that diverged tasks are excluded from the number; empty if there are none."""
    shares = [seed.get("diverged") or 0.0 for seed in cell.get("per_seed", ())]
    if not cell.get("converged_only") or not any(shares):
        return ""
    return f" (without the tasks that diverged, at most {100 * max(shares):.2g} % of a seed's)"


def _schedule(why_reduced: str, departures: str, pixels: str) -> Json:
    """Return whether the schedule is the published one, and why not; and what differs otherwise."""
    copies = f"pixels: {pixels}" if pixels not in ("", "as published") else ""
    why = "; ".join(filter(None, (why_reduced, departures, copies)))
    schedule = "reduced" if why_reduced else "full"
    return {"schema": 1, "kind": "cell", "schedule": schedule, "schedule_why": why}


def _machine(run: Run) -> Json:
    facts = run.environment
    return {
        "config_hash": run.result.get("config_hash"),
        "commit": run.result.get("git"),
        "date": str(facts.get("started", ""))[:10],
        "hardware": {name: facts.get(name) for name in ("cpu", "cores", "device")},
        "versions": {name: facts.get(name) for name in ("metalearn", "python", "torch")},
    }


def comparison_result(root: Path, command: str, schedule_why: str) -> Json:
    """Return a finished comparison as a file of `experiments/results/`.

    Raises ConfigError if its comparison.json is missing or damaged."""
    contents = check_schema(
        Comparison, read_json(root / "comparison.json"), root / "comparison.json"
    )
    groups = {one.label: one for one in group(map(load, run_directories(root)[0]))}
    first = next(iter(groups.values())).first
    task = first.task
    return {
        "schema": 1,
        "kind": "comparison",
        "experiment": str(first.result.get("experiment")),
        "command": command,
        "task": f"{task.get('source')}, {task.get('ways')}-way {task.get('shots')}-shot, "
        f"{task.get('queries')} queries per class",
        "metric": first.metric,
        "seeds": sorted({run.seed for one in groups.values() for run in one.runs}),
        "tasks": max(run.episodes for one in groups.values() for run in one.runs),
        "schedule": "reduced",
        "schedule_why": schedule_why,
        "rows": _with_mean_ranks(
            [_row(groups[line["label"]], line) for line in contents["summary"]], first
        ),
        "contrasts": [one for one in contents["paired"] if one.get("contrast")],
        "break_even": [one for one in contents["break_even"] if one.get("contrast")],
        **{name: pack_map(contents[name]) for name in MAPS if contents.get(name)},
        "failed_checks": [one["name"] for one in contents["checks"] if not one["passed"]],
        "rules": contents.get("rules"),
        "config_hash": {one.label: one.first.result.get("config_hash") for one in groups.values()},
        **_machine(first),
    }


def _row(row: Group, line: Mapping[str, Any]) -> Json:
    before = [up_front_cost(run, "flops") for run in row.runs]
    each = [learning_cost(run, "flops") for run in row.runs]
    points = [run.headline_point for run in row.runs]
    at_headline = [None if one is None else float(one[n]) for one, n in zip(each, points)]
    keys = ("label", "value", "ci95_tasks", "ci95_seeds", "interval", "per_seed", "step")
    return {
        **{name: line.get(name) for name in (*keys, *LIKELIHOOD)},
        "tasks": row.test_tasks,
        "flops_before": mean(before),
        "flops_task": mean(at_headline),
        **_by_source(row),
    }


def _by_source(row: Group) -> Json:
    """Return the metric on the tasks of each source, if tasks come from several."""

    def score(run: Run, name: str) -> float | None:
        return at(run.result["by_source"].get(name, {}).get(row.metric), run.headline_point)

    names = row.first.result.get("by_source") or {}
    scores = {name: mean([score(run, name) for run in row.runs]) for name in names}
    return {"by_source": scores} if scores else {}


def _with_mean_ranks(rows: list[Json], first: Run) -> list[Json]:
    """Return the rows with `mean_rank` over the sources on which every row has a score.

    1 is the best, and equal scores have the same mean rank."""
    sign = 1 if first.metric == "accuracy" else -1
    ranks: list[list[float]] = [[] for _ in rows]
    for name in rows[0].get("by_source", {}) if rows else ():
        entries = [row.get("by_source", {}).get(name) for row in rows]
        scores = [sign * score for score in entries if score is not None]
        if len(scores) < len(rows):
            continue
        for own, score in zip(ranks, scores):
            above, same = sum(one > score for one in scores), scores.count(score)
            own.append(above + (same + 1) / 2)
    return [{**row, "mean_rank": mean(own)} if own else row for row, own in zip(rows, ranks)]


def published_numbers(results: Mapping[str, Json]) -> list[Json]:
    """Return the published numbers among result files, by experiment and step."""
    numbers = [one for one in results.values() if one["kind"] == "cell"]
    return sorted(numbers, key=lambda one: (one["experiment"], one["tasks"], one["step"] or 0))
