"""`metalearn reproduce`: run experiments with a published number and compare with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.compare.compare import check, line
from metalearn.compare.compare import compare as compare_plan
from metalearn.config import shipped
from metalearn.config.build import build
from metalearn.config.experiment import Experiment, Plan, load
from metalearn.errors import ConfigError, Diverged
from metalearn.evaluate.stats import seeds_ci95
from metalearn.logger import log
from metalearn.results.published import cell_result
from metalearn.results.records import group, run_directories
from metalearn.results.records import load as load_record
from metalearn.run.directory import run_folders, status
from metalearn.run.run import run_one
from metalearn.storage.files import read_json, write_atomic, write_json

HEAD = "| experiment | row | after steps | metric | published | measured | tasks, seeds | verdict |"


class Cell(NamedTuple):
    """One published number beside ours.

    `ci95` is over seeds where there are several, else over tasks."""

    experiment: str
    label: str
    step: int
    metric: str
    published: float
    published_ci95: float | None
    value: float
    ci95: float
    tasks: int
    seeds: int
    source: str

    @property
    def verdict(self) -> str:
        """`agrees` where the intervals meet, else `better` or `worse` by a share."""
        apart = self.value - self.published
        if not math.isfinite(apart):
            return "diverged"
        if abs(apart) <= self.ci95 + (self.published_ci95 or 0.0):
            return "agrees"
        word = "better" if (apart > 0) == (self.metric == "accuracy") else "worse"
        return f"{word} by {100 * abs(apart) / max(abs(self.published), 1e-12):.1f} %"


def reproduce(names: Sequence[str], out: Path) -> list[Cell]:
    """Run the unfinished of `names` (default: all with a published number), write the record.

    Runs lie under `out`/<experiment>; the record, reproduced.json and reproduced.md, is written
    after each, and so is `results/`, a file a number, in the form of experiments/results/."""
    plans = chosen(names)
    if not names:
        log.info(f"with published numbers: {', '.join(plan.name for plan in plans)}")
    _check(plans, out)
    cells: list[Cell] = []
    diverged: list[str] = []
    for plan in plans:
        try:
            _run(plan, out / plan.name)
        except Diverged as error:
            log.error(f"{plan.name}: {error}")
            diverged.append(plan.name)
        cells += _cells(plan, out / plan.name)
        _record(out, cells)
        _write_results(plan, out)
    if diverged:
        raise Diverged(f"{', '.join(diverged)} diverged; the others are in {out / 'reproduced.md'}")
    return cells


def chosen(names: Sequence[str]) -> list[Plan]:
    """The plans of `names`, or of all files with a published number.

    ConfigError names those without one."""
    if names:
        return _named(names)
    files = shipped.files().values()
    found = [plan for plan in (load(str(file)) for file in files) if _published(plan)]
    if not found:
        raise ConfigError(("experiments", "no file there has a section `published`"))
    return found


def _named(names: Sequence[str]) -> list[Plan]:
    plans, problems = [], list[tuple[str, str]]()
    for name in dict.fromkeys(names):
        try:
            plans.append(load(name))
        except ConfigError as error:
            problems += error.problems
            continue
        if not _published(plans[-1]):
            problems.append(
                (name, "has no published number (section `published`): run it with metalearn train")
            )
    twice = {plan.name for plan in plans if [other.name for other in plans].count(plan.name) > 1}
    problems += [
        (name, "is the experiment of two files: their runs would share a folder")
        for name in sorted(twice)
    ]
    if problems:
        raise ConfigError(*problems)
    return plans


def _published(plan: Plan) -> list[Experiment]:
    return [
        one
        for one in plan.experiments
        if one.published and (one.published.curve or one.published.value is not None)
    ]


def _check(plans: Sequence[Plan], out: Path) -> None:
    """All that would stop one of them, at once, before the first is run."""
    problems: list[tuple[str, str]] = []
    for plan in plans:
        try:
            if plan.comparison:
                check(plan, out / plan.name)
                continue
            build(plan.experiments[0], to_train=True)
            for one, folder in _runs(plan, out / plan.name):
                if status(folder, one) == "other":
                    problems.append(
                        (str(folder), "holds something else: give another --out, or remove it")
                    )
        except ConfigError as error:
            problems += [(f"{plan.name}: {place}", text) for place, text in error.problems]
    if problems:
        raise ConfigError(*problems)


def _runs(plan: Plan, target: Path) -> list[tuple[Experiment, Path]]:
    experiment = plan.experiments[0]
    return [
        (experiment.with_seed(seed), folder) for seed, folder in run_folders(experiment, target)
    ]


def _run(plan: Plan, target: Path) -> None:
    if plan.comparison:
        compare_plan(plan, target)
        return
    for one, folder in _runs(plan, target):
        if status(folder, one) == "finished":
            log.info(f"{folder}: finished already, left alone")
        else:
            log.info(line(run_one(one, folder)))


def _cells(plan: Plan, target: Path) -> list[Cell]:
    """The published steps of every row, from the result files that are there."""
    cells = []
    for one in _published(plan):
        place = target / "methods" / one.label if plan.comparison else target
        results = [
            read_json(path)
            for path in sorted([*place.glob("result.json"), *place.glob("seed-*/result.json")])
        ]
        if results:
            cells += [
                _cell(plan.name, results, step, value)
                for step, value in _numbers(one, results[0]).items()
            ]
    return cells


def _numbers(one: Experiment, result: dict[str, Any]) -> dict[int, float]:
    """{steps: published value} of what the test measured."""
    assert one.published is not None
    numbers = dict(one.published.curve)
    if one.published.value is not None:
        numbers.setdefault(int(result["headline"]["step"]), one.published.value)
    return {
        step: value for step, value in sorted(numbers.items()) if step in result["test"]["steps"]
    }


def _cell(name: str, results: list[dict[str, Any]], step: int, published: float) -> Cell:
    first = results[0]
    metric, test, head = first["headline"]["metric"], first["test"], first["headline"]
    at = test["steps"].index(step)
    values = [_number(result["test"][metric][at]) for result in results]
    value, ci95 = values[0], _number(test[f"{metric}_ci95"][at])
    if len(values) > 1:
        value, over_seeds = sum(values) / len(values), seeds_ci95(values)
        ci95 = ci95 if over_seeds is None else over_seeds
    own = head["published_ci95"] if step == head["step"] else None
    tasks = first["episodes"]["count"]
    return Cell(
        name,
        first["label"],
        step,
        metric,
        published,
        own,
        value,
        ci95,
        tasks,
        len(values),
        head["source"],
    )


def _write_results(plan: Plan, out: Path) -> None:
    """The published steps of every row, as files that experiments/results/ takes as they are."""
    finished, _ = run_directories(out / plan.name)
    rows = {row.label: row for row in group(map(load_record, finished))}
    for one in _published(plan):
        if one.label not in rows:
            continue
        row = rows[one.label]
        for step, value in _numbers(one, row.first.result).items():
            data = cell_result(row, step, value, f"metalearn reproduce {plan.name}")
            place = f"{plan.name}-{one.label}" if plan.comparison else plan.name
            write_json(out / "results" / f"{place}-{step}.json", data)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _record(out: Path, cells: Sequence[Cell]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "reproduced.json",
        {"schema": 1, "rows": [{**c._asdict(), "verdict": c.verdict} for c in cells]},
    )
    write_atomic(out / "reproduced.md", ("\n".join(table(cells)) + "\n").encode())


def table(cells: Sequence[Cell]) -> list[str]:
    """The record as lines of Markdown."""
    rows = [
        f"| {c.experiment} | {c.label} | {c.step} | {c.metric} | "
        f"{_shown(c.published, c.published_ci95)} ({c.source}) "
        f"| {_shown(c.value, c.ci95)} | {c.tasks}, {c.seeds} | {c.verdict} |"
        for c in cells
    ]
    return [HEAD, "|---" * 8 + "|", *rows]


def _shown(value: float, ci95: float | None) -> str:
    return f"{value:.4g}" + (f" ± {ci95:.2g}" if ci95 else "")
