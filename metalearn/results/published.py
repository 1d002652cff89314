"""Measured numbers as `experiments/results/*.json` hold them, and the verdict beside a paper.

Three kinds of file: a `cell` is one number of a paper, measured; a `comparison` is the summary of
one comparison; a `table` is any other measurement. RESULTS.md is made of them alone
(report/results_page.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from metalearn.evaluate import random_effects, stats
from metalearn.results.costs import learning, up_front
from metalearn.results.records import Group, Json, Run, at, group, load, mean, run_directories
from metalearn.results.schema import Comparison
from metalearn.storage.files import read_json
from metalearn.storage.schema import Maybe, Open, Text, checked

Verdict = Literal["reproduced", "below", "above", "reduced schedule", "not run"]


class _Result(Open):
    kind: Text
    command: Text
    provenance: Text | None = None


class _Seed(Open):
    seed: int
    value: Maybe
    ci95_tasks: Maybe = None


class Cell(_Result):
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


class _Row(Open):
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


class Table(_Result):
    """Any other measurement: cells are texts, or numbers with their intervals."""

    kind: Literal["table"]
    columns: list[Text]
    rows: list[list[Text | dict[str, Maybe]]] = Field(min_length=1)


KINDS: dict[str, type[Open]] = {"cell": Cell, "comparison": ComparisonResult, "table": Table}


def read_results(folder: Path) -> dict[str, Json]:
    """Every result file of a folder by its name; ConfigError for one that is damaged."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        data = read_json(file)
        kind = data.get("kind") if isinstance(data, dict) else None
        found[file.stem] = checked(KINDS.get(str(kind), _Result), data, file)
    return found


def verdict(cell: Mapping[str, Any] | None) -> Verdict:
    """What a measured number says of the published one.

    `reproduced` where both 95 % intervals overlap, that of the measured number being the wider of
    those over seeds and over tasks; else `below` or `above`. A reduced schedule has no verdict."""
    if cell is None or cell["value"] is None:
        return "not run"
    if cell["schedule"] == "reduced":
        return "reduced schedule"
    low, high = cell.get("interval") or _wider(cell)
    half = cell["published_ci95"] or 0.0
    if high < cell["published"] - half:
        return "below"
    return "above" if low > cell["published"] + half else "reproduced"


def _wider(cell: Mapping[str, Any]) -> tuple[float, float]:
    half = max(cell["ci95_seeds"] or 0.0, cell["ci95_tasks"] or 0.0)
    return cell["value"] - half, cell["value"] + half


def cell_result(row: Group, step: int, published: float, command: str, reduced: str = "") -> Json:
    """One published number as a file of `experiments/results/`: a row at one step of its curve.

    `reduced` says why the schedule is not the published one; empty: it is.
    Of a loss of which tasks diverged, the mean over the others counts, and the share is given."""
    first, metric = row.first, row.metric
    head, point = first.result["headline"], first.steps.index(step)
    gone = [at(run.test.get("diverged"), point) for run in row.runs]
    converged = metric == "loss" and any(gone) and "loss_converged" in first.test
    name = "loss_converged" if converged else metric
    values = [at(run.test.get(name), point) for run in row.runs]
    halves = [at(run.test.get(f"{name}_ci95"), point) for run in row.runs]
    pooled = None if converged else row.pooled(metric)
    both = None if pooled is None else random_effects.estimate(pooled[:, :, point])
    return {
        **_schedule(reduced, (first.result.get("facts") or {}).get("pixels", "")),
        "experiment": str(first.result.get("experiment")),
        "label": row.label,
        "metric": metric,
        "step": step,
        "value": mean(values),
        "per_seed": [
            {"seed": run.seed, "value": value, "ci95_tasks": half, "diverged": share}
            for run, value, half, share in zip(row.runs, values, halves, gone)
        ],
        "ci95_tasks": max((half for half in halves if half is not None), default=None),
        "ci95_seeds": stats.seeds_ci95(values),
        "interval": list(both.ci95) if both and both.ci95 and both.seeds > 1 else None,
        "converged_only": converged,
        "tasks": row.tested_on,
        "published": published,
        "published_ci95": head.get("published_ci95") if step == head["step"] else None,
        "source": head.get("source") or "",
        "command": command,
        "seconds": [run.result.get("seconds") for run in row.runs],
        "flops": mean([up_front(run, "flops") for run in row.runs]),
        "config_hash": first.result.get("config_hash"),
        **_machine(first),
    }


def single_cell(cell: Json, row: Group) -> Json | None:
    """The same row by its best checkpoint alone, where `cell` is an ensemble's; else None."""
    found: list[Json] = [run.result.get("single") or {} for run in row.runs]
    if not all(one.get("step") == cell["step"] for one in found):
        return None
    values, halves = ([one[name] for one in found] for name in ("value", "ci95"))
    why = (cell["schedule_why"], "one checkpoint, where the published number is an ensemble's")
    return {
        **cell,
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


def left_out(cell: Mapping[str, Any]) -> str:
    """That tasks which diverged do not count in the number; empty where none did."""
    shares = [seed.get("diverged") or 0.0 for seed in cell.get("per_seed", ())]
    if not cell.get("converged_only") or not any(shares):
        return ""
    return f" (without the tasks that diverged, at most {100 * max(shares):.2g} % of a seed's)"


def _schedule(reduced: str, pixels: str) -> Json:
    """Whether the schedule is the published one; why not, and pixels that are not."""
    copies = f"pixels: {pixels}" if pixels not in ("", "as published") else ""
    why = "; ".join(filter(None, (reduced, copies)))
    schedule = "reduced" if reduced else "full"
    return {"schema": 1, "kind": "cell", "schedule": schedule, "schedule_why": why}


def _machine(run: Run) -> Json:
    facts = run.environment
    return {
        "commit": run.result.get("git"),
        "date": str(facts.get("started", ""))[:10],
        "hardware": {name: facts.get(name) for name in ("cpu", "cores", "device")},
        "versions": {name: facts.get(name) for name in ("metalearn", "python", "torch")},
    }


def comparison_result(root: Path, command: str, schedule_why: str) -> Json:
    """A finished comparison as a file of `experiments/results/`; ConfigError where it has none."""
    found = checked(Comparison, read_json(root / "comparison.json"), root / "comparison.json")
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
        "rows": _ranked([_row(groups[line["label"]], line) for line in found["summary"]], first),
        "contrasts": [one for one in found["paired"] if one.get("contrast")],
        "break_even": [one for one in found["break_even"] if one.get("contrast")],
        "failed_checks": [one["name"] for one in found["checks"] if not one["passed"]],
        "rules": found.get("rules"),
        "config_hash": {one.label: one.first.result.get("config_hash") for one in groups.values()},
        **_machine(first),
    }


def _row(row: Group, line: Mapping[str, Any]) -> Json:
    spent = [up_front(run, "flops") for run in row.runs]
    each = [learning(run, "flops") for run in row.runs]
    points = [run.headline_point for run in row.runs]
    at_headline = [None if one is None else float(one[n]) for one, n in zip(each, points)]
    kept = ("label", "value", "ci95_tasks", "ci95_seeds", "interval", "per_seed", "step")
    return {
        **{name: line.get(name) for name in kept},
        "tasks": row.tested_on,
        "flops_before": mean(spent),
        "flops_task": mean(at_headline),
        **_by_source(row),
    }


def _by_source(row: Group) -> Json:
    """The metric on the tasks of each source, where tasks come from several."""

    def score(run: Run, name: str) -> float | None:
        return at(run.result["by_source"].get(name, {}).get(row.metric), run.headline_point)

    names = row.first.result.get("by_source") or {}
    found = {name: mean([score(run, name) for run in row.runs]) for name in names}
    return {"by_source": found} if found else {}


def _ranked(rows: list[Json], first: Run) -> list[Json]:
    """The rows with `mean_rank` over the sources that every row has a score of.

    1 is the best, and equal scores share the mean rank."""
    sign = 1 if first.metric == "accuracy" else -1
    ranks: list[list[float]] = [[] for _ in rows]
    for name in rows[0].get("by_source", {}) if rows else ():
        found = [row.get("by_source", {}).get(name) for row in rows]
        scores = [sign * score for score in found if score is not None]
        if len(scores) < len(rows):
            continue
        for own, score in zip(ranks, scores):
            above, same = sum(one > score for one in scores), scores.count(score)
            own.append(above + (same + 1) / 2)
    return [{**row, "mean_rank": mean(own)} if own else row for row, own in zip(rows, ranks)]


def cells_of(results: Mapping[str, Json]) -> list[Json]:
    """The cells among result files, by experiment and step."""
    found = [one for one in results.values() if one["kind"] == "cell"]
    return sorted(found, key=lambda one: (one["experiment"], one["tasks"], one["step"] or 0))
