"""The functions of the commands, called with parsed arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from metalearn.compare.compare import check, line, require_finite
from metalearn.compare.compare import compare as compare_plan
from metalearn.compare.controls import with_controls
from metalearn.component import Component
from metalearn.config import shipped
from metalearn.config.build import Parts, build, build_to_test
from metalearn.config.experiment import Experiment, Plan, load, parse
from metalearn.config.misfits import choices_by_seen_classes, contradictions
from metalearn.config.overrides import apply_overrides
from metalearn.config.plugins import LOSS_KIND, REPORT_KIND, load_entry_points
from metalearn.config.registry import TABLES
from metalearn.config.sources import changed_data
from metalearn.distributed.curve import TaskSet, curve
from metalearn.distributed.ranks import ALONE, Ranks
from metalearn.errors import ConfigError, did_you_mean
from metalearn.logger import log
from metalearn.losses import FUNCTIONS, LOSSES
from metalearn.machine import cores, set_threads
from metalearn.report.figures.decision import map_text
from metalearn.report.questions import all_questions
from metalearn.report.run_figures import Evaluation
from metalearn.report.section import Question
from metalearn.run.checkpoints import select_checkpoint
from metalearn.run.directory import (
    UNFINISHED,
    describe_changed_data,
    recorded_tasks,
    resumable,
    run_folders,
    status,
    why_other,
)
from metalearn.run.features import features_once
from metalearn.run.final_test import describe_result
from metalearn.run.run import run_one
from metalearn.run.trained.load import LoadedRun, load_run
from metalearn.storage import checkpoint
from metalearn.storage.files import read_json, write_json
from metalearn.types import Meta, NullLedger

EXPERIMENTS = {"experiments": "", "sweeps": "sweeps"}  # tables of files, and their folders


def train(
    name: str, overrides: Sequence[str], out: Path | None, dry_run: bool, ranks: Ranks | None = None
) -> None:
    """`metalearn train`: every seed of one experiment.

    Raises ConfigError if the directory contains an unfinished run or other files."""
    plan = _plan(name, overrides)
    if plan.comparison:
        raise ConfigError((plan.file, f"lists several `methods`: use metalearn compare {name}"))
    experiment = plan.experiments[0]
    root = out or Path("runs") / plan.name
    runs = [(experiment.with_seed(seed), folder) for seed, folder in run_folders(experiment, root)]
    parts, ranks = build(experiment, to_train=True), ranks or ALONE
    ranks.on_rank0(lambda: _check_folders(runs, root))
    if dry_run:
        print(yaml.safe_dump(experiment.resolved(), sort_keys=False), end="")
        return
    results = []
    for seeded, folder in runs:
        if ranks.on_rank0(partial(status, folder, seeded)) == "finished":
            log.info(f"{folder}: already finished with this config; skipped")
            if why := ranks.on_rank0(partial(describe_changed_data, folder, parts)):
                log.warning(f"{folder}: was made with {why}: choose another --out to train on them")
            continue
        results.append((folder, run_one(seeded, folder, parts, ranks=ranks)))
        print(line(results[-1][1]))
        print(f"run directory: {folder}")
    require_finite(results)


def _check_folders(runs: Sequence[tuple[Experiment, Path]], root: Path) -> None:
    problems = []
    if root.is_dir() and len(runs) > 1:
        other_names = [
            entry.name for entry in root.iterdir() if not entry.name.startswith((".", "seed-"))
        ]
        if other_names:
            problems.append(
                (
                    str(root),
                    f"contains other files ({', '.join(sorted(other_names)[:3])}): choose another "
                    f"--out",
                )
            )
    for experiment, folder in runs:
        state = status(folder, experiment)
        if state == "unfinished":
            problems.append((str(folder), f"{UNFINISHED} metalearn resume {folder}"))
        elif state == "other":
            problems.append((str(folder), why_other(folder)))
    if problems:
        raise ConfigError(*problems)


def compare(
    name: str, overrides: Sequence[str], out: Path | None, dry_run: bool, ranks: Ranks | None = None
) -> None:
    """`metalearn compare`: all methods and seeds, then comparison.json and report.html."""
    plan = _plan(name, overrides)
    if not plan.comparison:
        raise ConfigError((plan.file, f"has a single `method`: use metalearn train {name}"))
    plan, notes = with_controls(plan)
    for note in notes:
        log.info(f"note: {note}")
    root = out or Path("runs") / plan.name
    if dry_run:
        check(plan, root)
        print(
            yaml.safe_dump_all(
                [experiment.resolved() for experiment in plan.experiments], sort_keys=False
            ),
            end="",
        )
        return
    paths = compare_plan(plan, root, ranks or ALONE)
    contents = read_json(paths["comparison"])
    for name in ("decision_map", "decision_map_free"):
        if grid := contents.get(name):
            print(map_text(grid, grid["as_tested"]))
    print(f"comparison: {paths['comparison']}\nreport: {paths['report']}")


def _plan(name: str, overrides: Sequence[str]) -> Plan:
    plan = load(name, overrides)
    for note in plan.notes:
        log.info(f"note: {note}")
    return plan


def resume(folder: Path, allow_change: bool, ranks: Ranks | None = None) -> None:
    """`metalearn resume`: continue an interrupted run; a finished one is only reported."""
    ranks = ranks or ALONE
    config = ranks.on_rank0(lambda: resumable(folder, allow_change))
    if config is None:
        log.info(f"{folder}: this run is finished")
        return
    experiment = parse(config).experiments[0]
    result = run_one(experiment, folder, ranks=ranks, allow_change=allow_change)
    print(line(result))
    print(f"run directory: {folder}")
    require_finite([(folder, result)])


def evaluate(
    folder: Path, overrides: Sequence[str], out: Path | None, ranks: Ranks | None = None
) -> None:
    """`metalearn evaluate`: a run on the same or other episodes.

    Writes evaluations/<n>.json."""
    result, path = evaluate_run(folder, overrides, out, ranks)
    print(line(result))
    print(f"evaluation: {path}")


def evaluate_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Test a run on the same or other episodes. Returns (result, its file evaluations/<n>.json).

    >>> ml.evaluate_run("runs/example", ["evaluate.episodes=6"])[0]["test"]["steps"]  # of `train`
    [0, 1]
    """
    folder = Path(folder)
    loaded = load_run(folder)
    if not (folder / "result.json").exists():
        step = int(loaded.state.step)
        log.info(f"note: {folder} is not finished: testing its newest checkpoint, step {step}")
    data, notes = apply_overrides(
        loaded.config.resolved(), _as_evaluate_overrides(overrides, loaded.config)
    )
    for note in notes:
        log.info(f"note: {note}")
    experiment = parse(data).experiments[0]
    settings = experiment.evaluate
    _check_settings(experiment)
    set_threads(loaded.config.run.threads or cores())
    parts = build_to_test(experiment, recorded_tasks(folder))
    _warn_of_changed_data(loaded, experiment, parts)
    metas = _select_metas(loaded, experiment)
    seed = experiment.run.seeds[0]
    tasks = TaskSet("test", settings.episodes, settings.seed, seed, fingerprinted=True)
    ranks = ranks or ALONE
    with features_once(parts, tasks, settings.chunk, NullLedger(), ranks):
        learning_curve = curve(ranks, experiment, parts, metas, tasks, NullLedger())
    result = describe_result(experiment, seed, parts, learning_curve)
    result |= {"config_hash": experiment.hash(), "evaluates": str(folder)}
    result["overrides"] = list(overrides)
    evaluations = Path(out or folder / "evaluations")
    return Evaluation(result, ranks.on_rank0(lambda: _write_numbered(evaluations, result)))


def _warn_of_changed_data(loaded: LoadedRun, experiment: Experiment, parts: Parts) -> None:
    """Warn if the test is the same, but its data have changed."""
    before = (loaded.config.test_task, loaded.config.evaluate.split)
    if before != (experiment.test_task, experiment.evaluate.split):
        return
    if why := changed_data(recorded_tasks(loaded.folder).get("test", {}), parts.test):
        log.warning(f"task: the run was made with {why}")


def _check_settings(experiment: Experiment) -> None:
    if experiment.evaluate.headline == "tuned":
        text = "cannot be 'tuned' here: tuning happens during training; give a number of steps"
        raise ConfigError(("evaluate.headline_step", text))
    selection_problems = choices_by_seen_classes(experiment)
    problems = [(place, text) for place, text in selection_problems if place.startswith("evaluate")]
    if problems := problems + contradictions(experiment):
        raise ConfigError(*problems)


def _write_numbered(folder: Path, result: dict[str, Any]) -> Path:
    """Write <n>.json with n one more than the highest number in the folder; returns its path."""
    numbers = [int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()]
    path = folder / f"{1 + max(numbers, default=0)}.json"
    write_json(path, result)
    return path


def _select_metas(loaded: LoadedRun, experiment: Experiment) -> list[Meta]:
    """Return the metas that evaluate.checkpoint selects; the run's own choice reuses its test's."""
    if (
        loaded.method.step is None
        or experiment.evaluate.checkpoint == loaded.config.evaluate.checkpoint != "ensemble"
    ):
        return [loaded.state.meta]
    newest = checkpoint.newest(loaded.folder / "checkpoints", loaded.state)
    last = newest[1] if newest else loaded.state
    states, _ = select_checkpoint(experiment, loaded.folder, last)
    return [state.meta for state in states]


def _as_evaluate_overrides(overrides: Sequence[str], trained: Experiment) -> list[str]:
    """Apply task.* to the test tasks; raises ConfigError for an override of training."""
    kind = type(trained.base_method)
    at_train = {name for name in kind.model_fields if kind.acts_of(name) == "train"} | {
        "name",
        "start",
        "tune",
    }
    sentence = (
        "would change the trained model: override evaluate.*, task.* or a method field "
        "that acts on new tasks"
    )
    changed, problems = [], []
    for text in overrides:
        key = text.partition("=")[0].split(".")
        field_path = (
            key[1:]
            if trained.contains is None
            else key[2:]
            if key[:2] == ["method", "contains"]
            else []
        )
        on_method = key[0] == "method" and bool(field_path) and field_path[0] not in at_train
        if not (
            on_method
            or key[0] in ("evaluate", "task")
            or key in (["run", "device"], ["run", "threads"])
        ):
            problems.append((text, sentence))
        changed.append(f"evaluate.{text}" if key[0] == "task" else text)
    if problems:
        raise ConfigError(*problems)
    return changed


def reproduce(names: Sequence[str], out: Path) -> None:
    """`metalearn reproduce`: run experiments and compare with published results."""
    from metalearn.compare.reproduce import reproduce, table

    print("\n".join(table(reproduce(names, out))))
    print(f"record: {out / 'reproduced.md'}")


def report(dirs: Sequence[Path], out: Path) -> None:
    """`metalearn report`: one HTML report of runs and comparisons, or of sweeps."""
    from metalearn.report.pages import write_pages

    print(f"report: {write_pages(dirs, out)}")


def catalogue(table: str | None) -> dict[str, list[dict[str, Any]]]:
    """Return the components by table, and the files of EXPERIMENTS.

    Each has its name, sentence, and every field with its sentence and default; each file its name,
    sentence and path."""
    load_entry_points()
    tables = [*TABLES, LOSS_KIND, REPORT_KIND, *EXPERIMENTS]
    if table is not None and table not in tables:
        raise ConfigError((table, f"unknown table; {did_you_mean(table, tables)}"))
    rows = {}
    for name in [table] if table else tables:
        if name in TABLES:
            rows[name] = [_row(key, kind) for key, kind in TABLES[name].items()]
        elif name == LOSS_KIND:
            rows[name] = [
                _loss_row(key, function) for key, function in {**LOSSES, **FUNCTIONS}.items()
            ]
        elif name == REPORT_KIND:
            rows[name] = [_section_row(question) for question in all_questions()]
        else:
            files = shipped.files(EXPERIMENTS[name])
            rows[name] = [
                {"name": key, "sentence": shipped.sentence(path), "path": str(path)}
                for key, path in files.items()
            ]
    return rows


def _section_row(question: Question) -> dict[str, Any]:
    return {"name": question.name, "sentence": question.title}


def _loss_row(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    text = (function.__doc__ or "").strip().split("\n\n")[0]
    return {"name": name, "sentence": " ".join(text.split())}


def _row(name: str, kind: type[Component]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    defaults = {key: schema["properties"][key].get("default") for key in kind.model_fields}
    fields = {
        key: {"sentence": info.description, "default": defaults[key], "acts": kind.acts_of(key)}
        for key, info in kind.model_fields.items()
    }
    return {"name": name, "sentence": kind.sentence(), "fields": fields}
