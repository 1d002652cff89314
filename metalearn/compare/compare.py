"""Several methods on the same frozen episodes, each seed a run directory, then one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.compare.scheduler import alone, run_rows
from metalearn.compare.timing import time_rows
from metalearn.config.build import build
from metalearn.config.experiment import Experiment, Plan
from metalearn.distributed.ranks import ALONE, Ranks
from metalearn.errors import ConfigError, Diverged
from metalearn.logger import log
from metalearn.report.page import write_report
from metalearn.results.comparison import read_request, write_comparison
from metalearn.results.contrast_choice import append_request
from metalearn.run.directory import status, why_other
from metalearn.run.run import lock_run, run_locked
from metalearn.storage import checkpoint
from metalearn.storage.files import write_json
from metalearn.tracking.tracker import group_name, log_page, with_wandb_group


def folders(plan: Plan, out: Path) -> list[tuple[Experiment, Path]]:
    """Return (experiment of one seed, run directory) of every method and seed, in the file's
    order."""
    return [
        (experiment.with_seed(seed), out / "methods" / experiment.label / f"seed-{seed}")
        for experiment in plan.experiments
        for seed in experiment.run.seeds
    ]


def check(plan: Plan, out: Path) -> None:
    """Reject parts that cannot be built, and folders of others, before anything is written."""
    labels_by_problem: dict[tuple[str, str], list[str]] = {}
    for experiment in plan.experiments:
        try:
            build(experiment, to_train=True)
        except ConfigError as error:
            for problem in error.problems:
                labels_by_problem.setdefault(problem, []).append(experiment.label)
    problems = list[tuple[str, str]]()
    for (place, text), labels in labels_by_problem.items():
        more = f" (and {len(labels) - 1} more methods)" if labels[1:] else ""
        problems.append((f"methods.{labels[0]}: {place}", text + more))
    if out.exists() and not out.is_dir():
        problems.append((str(out), "is a file: choose another --out"))
    elif out.exists() and any(out.iterdir()) and not (out / "methods").is_dir():
        problems.append(
            (str(out), "contains files that are not a comparison: choose another --out")
        )
    for experiment, folder in folders(plan, out):
        if status(folder, experiment) == "other":
            problems.append((str(folder), why_other(folder)))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def compare(plan: Plan, out: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Run what is not finished, time all rows in turns, write comparison.json and report.html.

    Returns their paths. The same comparison in the same folder, called again while it runs, runs
    remaining rows in parallel."""
    ranks.on_rank0(lambda: check(plan, out))
    ranks.on_rank0(lambda: _write_request(plan, out))
    ran, diverged_names = list[str](), list[str]()

    def is_finished(name: str, experiment: Experiment, folder: Path) -> bool:
        state = ranks.on_rank0(lambda: status(folder, experiment))
        if state == "other":  # another comparison has begun in this folder since the check
            raise ConfigError((str(folder), why_other(folder)))
        if state == "finished":
            log.info(f"{name}: already finished; skipped")
        return bool(state == "finished")

    def run(experiment: Experiment, folder: Path) -> None:
        name = f"{experiment.label} seed {experiment.run.seeds[0]}"
        if is_finished(name, experiment, folder):
            return
        row_with_group = with_wandb_group(experiment, group_name(plan.name, out))
        try:
            with lock_run(folder, ranks):
                if is_finished(name, experiment, folder):  # finished while this one waited
                    return
                ran.append(name)
                log.info(line(run_locked(row_with_group, folder, ranks=ranks)))
        except Diverged as error:  # the other rows are run and reported all the same
            log.error(f"{name}: {error}")
            diverged_names.append(name)

    run_rows(folders(plan, out), run, ranks=ranks)
    paths = ranks.on_rank0(lambda: _summarize(plan, out, ran=bool(ran)))
    if diverged_names:
        raise Diverged(
            f"{', '.join(diverged_names)} diverged; the other methods are in {paths['report']}"
        )
    return paths


def _write_request(plan: Plan, out: Path) -> None:
    """Make the folder, and write the target, labels and contrasts of the comparison.

    `requests` keeps those of earlier calls that differ, and how many rows had finished by then."""
    # The marker of a comparison: its folder is recognised from here on.
    (out / "methods").mkdir(parents=True, exist_ok=True)
    target = plan.experiments[0].evaluate.target
    finished = len(list((out / "methods").glob("*/*/result.json")))
    request: dict[str, Any] = {
        "experiment": plan.name,
        "target": target.model_dump() if target else None,
        "labels": [experiment.label for experiment in plan.experiments],
        "contrasts": plan.contrasts,
        "demonstration": plan.demonstration,
    }
    request["requests"] = append_request(request, read_request(out), finished)
    write_json(out / "comparison-request.json", request)


def _summarize(plan: Plan, out: Path, *, ran: bool) -> dict[str, Path]:
    """Time all rows in turns, write comparison.json and the report; return their paths."""
    with alone(out):  # another process that ran some of the rows may do the same
        time_rows(out, [folder for _, folder in folders(plan, out)])
        comparison = write_comparison(out)
        report = write_report([out], out / "report.html", demonstration=plan.demonstration)
        if ran:
            log_page(plan.experiments[0], plan.name, out, report)
    return {"comparison": comparison, "report": report}


def line(result: dict[str, Any]) -> str:
    """Return one result as a sentence."""
    head = result["headline"]
    value = "not finite" if head["value"] is None else f"{head['value']:.4f}"
    interval = "" if head["ci95"] is None else f" +- {head['ci95']:.4f}"
    uses_steps = result["traits"].get("uses_steps", True)
    steps = f"after {head['step']} steps" if uses_steps else "without a step"
    return (
        f"{result['label']} seed {result['seed']}: {head['metric']} {value}{interval} {steps}, "
        f"{result['episodes']['count']} tasks, normalisation {result['normalisation']}"
        f"{_likelihood(result)}"
    )


def _likelihood(result: dict[str, Any]) -> str:
    """Return NLL and calibration error at the headline step; empty if the run has none."""
    test, step = result["test"], result["headline"]["step"]
    place = test["steps"].index(step) if step in test["steps"] else 0
    parts = []
    if (values := test.get("nll")) and values[place] is not None:
        parts.append(f"NLL {values[place]:.4g}")
    if (values := test.get("calibration_error")) and values[place] is not None:
        parts.append(f"calibration error {100 * values[place]:.3g} %")
    return "".join(f", {part}" for part in parts)


def require_finite(results: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """Diverged where trained runs have no finite headline value, after all results are written.

    Of a method that learns nothing across tasks, diverging is the finding: it is a warning."""
    problems = []
    for folder, result in results:
        head, test = result["headline"], result["test"]
        if head["value"] is not None:
            continue
        share = test["diverged"][test["steps"].index(head["step"])]
        text = f"{result['label']} seed {result['seed']}: {head['metric']} after {head['step']} "
        text += f"steps is not finite, {share:.1%} of the test tasks diverged: try a smaller "
        text += f"method.inner_lr or an earlier evaluate.headline_step; the result is in {folder}"
        trained = any(step > 0 for step in checkpoint.steps_in(folder / "checkpoints"))
        if trained:
            problems.append(text)
        else:
            log.warning(text)
    if problems:
        raise Diverged("\n".join(problems))
