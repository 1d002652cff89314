"""`metalearn reproduce`: run experiments with a published number and compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.compare.compare import check, line
from metalearn.compare.compare import compare as compare_plan
from metalearn.config import shipped
from metalearn.config.build import build
from metalearn.config.experiment import Experiment, Plan, load
from metalearn.errors import ConfigError, DataError, Diverged
from metalearn.logger import log
from metalearn.report import markdown
from metalearn.results.published import cell_result, describe_left_out, single_cell, verdict
from metalearn.results.records import Json, group, run_directories
from metalearn.results.records import load as load_record
from metalearn.run.directory import recorded_start, run_folders, status, why_other
from metalearn.run.run import run_one
from metalearn.run.warm_start import find_start_run
from metalearn.storage.files import write_atomic, write_json

HEAD = ("experiment", "row", "steps", "metric", "published", "measured", "tasks, seeds", "verdict")


def reproduce(names: Sequence[str], out: Path) -> list[Json]:
    """Run the unfinished of `names` (default: all with a published number), write the record.

    Runs are stored under `out`/<experiment>; the record, reproduced.json and reproduced.md, is
    written after each, and so is `results/`, with one file per number in the format of
    experiments/results/. Without `names`, experiments without data are skipped, and the record says
    why."""
    plans = with_starts(published_plans(names))
    if not names:
        log.info(f"with published results: {', '.join(plan.name for plan in plans)}")
    absent = {} if names else {plan.name: why for plan in plans if (why := _absent_data(plan))}
    _check([plan for plan in plans if plan.name not in absent], out)
    cells: list[Json] = []
    diverged_names: list[str] = []
    for plan in plans:
        if plan.name in absent:
            log.info(f"{plan.name}: not run: {absent[plan.name]}")
            cells += [
                cell for one in _with_published(plan) for cell in _not_run(one, absent[plan.name])
            ]
            continue
        try:
            if _start(plan) in diverged_names:
                raise Diverged(f"its start, {_start(plan)}, diverged")
            _run(plan, out / plan.name)
        except Diverged as error:
            log.error(f"{plan.name}: {error}")
            diverged_names.append(plan.name)
        cells += _cells(plan, out)
        _record(out, cells)
    if diverged_names:
        raise Diverged(
            f"{', '.join(diverged_names)} diverged; the others are in {out / 'reproduced.md'}"
        )
    _record(out, cells)
    return cells


def published_plans(names: Sequence[str]) -> list[Plan]:
    """Return the plans of `names`, or of all files with a published number.

    Raises ConfigError with the names that have none."""
    if names:
        return _load_named(names)
    files = shipped.files().values()
    plans = [plan for plan in (load(str(file)) for file in files) if _with_published(plan)]
    if not plans:
        raise ConfigError(("experiments", "no file in it has a section `published`"))
    return plans


def _load_named(names: Sequence[str]) -> list[Plan]:
    plans, problems = [], list[tuple[str, str]]()
    for name in dict.fromkeys(names):
        try:
            plans.append(load(name))
        except ConfigError as error:
            problems += error.problems
            continue
        if not _with_published(plans[-1]):
            command = "compare" if plans[-1].comparison else "train"
            text = "has no published result (section `published`): run it with metalearn"
            problems.append((name, f"{text} {command} {name}"))
    twice = {plan.name for plan in plans if [other.name for other in plans].count(plan.name) > 1}
    problems += [
        (name, "is the experiment of two files, which would use one run directory")
        for name in sorted(twice)
    ]
    if problems:
        raise ConfigError(*problems)
    return plans


def with_starts(plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans, each after the one whose training it tests (`method.start`).

    A start that is an experiment of this project or one of `plans` is added if it is missing."""
    by_name, files = {plan.name: plan for plan in plans}, shipped.files()
    ordered = dict[str, Plan]()

    def add(plan: Plan, later: tuple[str, ...]) -> None:
        start = _start(plan)
        if start in (by_name.keys() | files.keys()) - {*ordered, *later}:
            add(by_name[start] if start in by_name else load(start), (*later, plan.name))
        ordered.setdefault(plan.name, plan)

    for plan in plans:
        add(plan, ())
    return list(ordered.values())


def _start(plan: Plan) -> str | None:
    """Return the start of an experiment; in a comparison, starts are other methods of it."""
    return None if plan.comparison else plan.experiments[0].start


def _with_published(plan: Plan) -> list[Experiment]:
    return [
        one
        for one in plan.experiments
        if one.published and (one.published.curve or one.published.value is not None)
    ]


def _absent_data(plan: Plan) -> str:
    """Return why a plan cannot run for lack of data; empty if it can."""
    try:
        for one in plan.experiments:
            one.test_task.build(split=one.evaluate.split, seed=0)
    except DataError as error:
        return error.problems[0][1]
    return ""


def _check(plans: Sequence[Plan], out: Path) -> None:
    """Raise ConfigError with all problems of all plans, before the first is run."""
    problems: list[tuple[str, str]] = []
    for number, plan in enumerate(plans):
        problems += _start_problems(plan, plans[:number], out)
        try:
            if plan.comparison:
                check(plan, out / plan.name)
                continue
            build(plan.experiments[0], to_train=True)
            for one, folder in _runs(plan, out / plan.name):
                if status(folder, one) == "other":
                    problems.append((str(folder), why_other(folder)))
        except ConfigError as error:
            problems += [(f"{plan.name}: {place}", text) for place, text in error.problems]
    if problems:
        raise ConfigError(*problems)


def _start_problems(plan: Plan, earlier: Sequence[Plan], out: Path) -> list[tuple[str, str]]:
    """Return why a plan cannot start from its start, or was tested from another run of it."""
    start = _start(plan)
    if start is None:
        return []
    runs, place = _runs(plan, out / plan.name), f"{plan.name}: method.start"
    before = [one for one in earlier if one.name == start and not one.comparison]
    if not before:
        try:
            for one, folder in runs:
                find_start_run(start, folder, one.run.seeds[0])
        except ConfigError as error:
            return [(place, text) for _, text in error.problems]
        return []
    trained = before[0].experiments[0]
    if absent := [
        str(one.run.seeds[0]) for one, _ in runs if one.run.seeds[0] not in trained.run.seeds
    ]:
        return [(place, f"{start} is not trained with seed {', '.join(absent)}")]
    text = f"was tested with another network than {start} trains now: remove this folder"
    return [
        (str(folder), text)
        for one, folder in runs
        if status(folder, one) != "fresh"
        and recorded_start(folder) not in (None, trained.with_seed(one.run.seeds[0]).hash())
    ]


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
            log.info(f"{folder}: already finished; skipped")
        else:
            log.info(line(run_one(one, folder)))


def _cells(plan: Plan, out: Path) -> list[Json]:
    """Return the published steps of every row, in the format of experiments/results/.

    A row that lacks a seed has no number: the others alone would be a choice among seeds."""
    folders = [folder for _, folder in _runs(plan, out / plan.name)]
    finished = [folder for folder in folders if (folder / "result.json").exists()]
    if plan.comparison:
        finished, _ = run_directories(out / plan.name)
    rows = {row.label: row for row in group(map(load_record, finished))}
    cells: list[Json] = []
    for one in _with_published(plan):
        seeds = {run.seed for run in rows[one.label].runs} if one.label in rows else set[int]()
        if absent := [str(seed) for seed in one.run.seeds if seed not in seeds]:
            cells += _not_run(one, f"no result of seed {', '.join(absent)} (see the log)")
            continue
        assert one.published is not None
        row, number = rows[one.label], one.published
        differs = (number.reduced, number.departures)
        for step, value in _numbers(one, row.first.result).items():
            data = cell_result(row, step, value, f"metalearn reproduce {plan.name}", *differs)
            place = f"{plan.name}-{one.label}" if plan.comparison else plan.name
            for suffix, cell in (("", data), ("-single", single_cell(data, row))):
                if cell is not None:
                    write_json(out / "results" / f"{place}-{step}{suffix}.json", cell)
                    count = len(cell["per_seed"])
                    cells.append({**cell, "seeds": count, "verdict": verdict(cell)})
    return cells


def _not_run(one: Experiment, why: str) -> list[Json]:
    assert one.published is not None
    numbers = dict[int | str, float | None](one.published.curve.items())
    numbers = numbers or {one.evaluate.headline: one.published.value}
    return [
        {
            "experiment": one.name,
            "label": one.label,
            "step": step,
            "metric": "",
            "published": value,
            "published_ci95": one.published.ci95,
            "source": one.published.source,
            "value": None,
            "verdict": verdict(None),
            "why": why,
            "command": f"metalearn reproduce {one.name}",
        }
        for step, value in numbers.items()
    ]


def _numbers(one: Experiment, result: dict[str, Any]) -> dict[int, float]:
    """Return {step: published value} of the steps that the test measured."""
    assert one.published is not None
    numbers = dict(one.published.curve)
    if one.published.value is not None:
        numbers.setdefault(int(result["headline"]["step"]), one.published.value)
    return {
        step: value for step, value in sorted(numbers.items()) if step in result["test"]["steps"]
    }


def _record(out: Path, cells: Sequence[Json]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "reproduced.json", {"schema": 1, "rows": list(cells)})
    write_atomic(out / "reproduced.md", ("\n".join(table(cells)) + "\n").encode())


def table(cells: Sequence[Json]) -> list[str]:
    """Return the record as lines of Markdown."""
    return markdown.table(HEAD, map(_line, cells)).splitlines()


def _line(cell: Json) -> Sequence[str]:
    halves = (cell.get(name) for name in ("ci95_seeds", "ci95_tasks"))
    ci95 = max((half for half in halves if half is not None), default=None)
    count = f"{cell['tasks']}, {cell['seeds']}" if "tasks" in cell else "-"
    reason = cell.get("why") or cell.get("schedule_why")
    why = f": {reason}" if reason else ""
    return (
        cell["experiment"],
        cell["label"],
        str(cell["step"]),
        cell["metric"],
        f"{_format_number(cell['published'], cell['published_ci95'])} ({cell['source']})",
        "-"
        if cell["value"] is None
        else _format_number(cell["value"], ci95) + describe_left_out(cell),
        count,
        cell["verdict"] + why,
    )


def _format_number(value: float, ci95: float | None) -> str:
    return f"{value:.4g}" + (f" ± {ci95:.2g}" if ci95 else "")
