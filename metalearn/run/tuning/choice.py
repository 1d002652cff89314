"""The choices of tuning: read, stored, copied from another seed, and written into a config."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from metalearn.config.experiment import Experiment
from metalearn.config.sections import TuneRange
from metalearn.config.tuning import with_values
from metalearn.run.job import Job
from metalearn.storage.files import read_json, write_json
from metalearn.storage.schema import Choice, check_schema

# (file of a choice, stage in which its fields act)
STAGES = (("training", "training"), ("best", "new tasks"))


def split_fields(experiment: Experiment) -> tuple[dict[str, TuneRange], dict[str, TuneRange]]:
    """Return (fields that act in training, fields that act on new tasks alone)."""
    late = type(experiment.base_method).fields_at_adapt()
    train = {name: span for name, span in experiment.tune.items() if name.split(".")[0] not in late}
    return train, {
        name: span for name, span in experiment.tune.items() if name.split(".")[0] in late
    }


def has_tuning(experiment: Experiment) -> bool:
    """Return whether a run chooses anything on validation tasks."""
    return any(split_fields(experiment)) or experiment.evaluate.headline == "tuned"


def copy_earlier_choice(job: Job) -> None:
    """Under `budget.once`, copy the choice of an earlier, finished seed of this method.

    The cost of the copied trials is then recorded like that of an interrupted run."""
    if job.experiment.budget.once:
        job.ranks.on_rank0(lambda: _copy_choice(job.folder))


def _copy_choice(folder: Path) -> None:
    tune_folder, request = folder / "tune", _request_hash(folder)
    if tune_folder.exists():
        return
    for other_run in sorted(folder.parent.glob("seed-*")):
        files = sorted((other_run / "tune").glob("*.json"))
        finished = other_run != folder and files and (other_run / "result.json").exists()
        if not finished or _request_hash(other_run) != request:
            continue
        copy = folder / ".tune"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in files:
            shutil.copyfile(file, copy / file.name)
        write_json(copy / "from.json", {"seed": int(other_run.name.removeprefix("seed-"))})
        copy.rename(tune_folder)  # atomically
        return


def _request_hash(folder: Path) -> Any:
    """Return the hash of a run's requested config for all seeds; None if it is not recorded."""
    path = folder / "environment.json"
    return read_json(path).get("request") if path.exists() else None


def stored_choice(job: Job, name: str) -> dict[str, Any] | None:
    """Return the choice of an earlier process, and record its cost; None without a choice."""
    path = job.folder / "tune" / f"{name}.json"

    def read() -> dict[str, Any] | None:
        return check_schema(Choice, read_json(path), path) if path.exists() else None

    choice = job.ranks.on_rank0(read)
    if choice is not None:
        record_trials(job, [*choice["trials"], choice.get("headline", {"cost": {}})])
    return choice


def store_choice(job: Job, name: str, choice: dict[str, Any]) -> None:
    job.ranks.on_rank0(lambda: write_json(job.folder / "tune" / f"{name}.json", choice))


def with_choice(experiment: Experiment, choice: dict[str, Any]) -> Experiment:
    """Return the experiment with the chosen fields and headline step."""
    evaluate = experiment.evaluate
    if choice.get("headline_step") is not None:
        evaluate = evaluate.model_copy(update={"headline_step": int(choice["headline_step"])})
    base_method = with_values(experiment.base_method, choice["parameters"])
    return experiment.with_base_method(base_method).replace(evaluate=evaluate)


def record_trials(job: Job, trials: Sequence[dict[str, Any]]) -> None:
    """Write the cost of trials of an earlier process to the job's ledger as tuning."""
    for trial in trials:
        job.ledger.add("tune", **{"seconds": 0.0, **trial["cost"]})


def tuned_values(folder: Path) -> dict[str, Any] | None:
    """Return tuned fields, headline step, and fields on the edge of their range; or None."""
    values: dict[str, Any] = {}
    for choice in _choices(folder).values():
        values |= choice["parameters"] | {"headline_step": choice.get("headline_step")}
        values["on_edge"] = values.get("on_edge", []) + choice["edge"]
    if values and (source := _from_seed(folder)) is not None:
        values["from_seed"] = source
    return values or None


def tuning_record(folder: Path, experiment: Experiment, metric: str) -> dict[str, Any] | None:
    """Return the field `tuning` of result.json: validation scores of all trials; or None."""
    own_seed, source = experiment.run.seeds[0], _from_seed(folder)
    trials = {name: choice["trials"] for name, choice in _choices(folder).items()}
    stages = [_stage(acts_in, trials[name], metric) for name, acts_in in STAGES if trials.get(name)]
    budget = experiment.budget
    record: dict[str, Any] = {
        "trials": budget.trials or None,
        "flops": budget.flops,
        "once": budget.once,
    }
    record |= {"seed": own_seed if source is None else source, "stages": stages}
    return record if stages else None


def _stage(acts_in: str, trials: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    scores = [trial["score"] for trial in trials]
    finite_or_worst = [-math.inf if score is None else float(score) for score in scores]
    costs = [trial["cost"].get("flops", 0.0) for trial in trials]
    return {
        "acts_in": acts_in,
        "fields": sorted(trials[0]["parameters"]),
        "trials": len(trials),
        "flops": None if None in costs else sum(costs),
        "largest_flops": None if None in costs else max(costs),  # of one trial
        "scores": _values(finite_or_worst, metric),
        "best_so_far": _values(itertools.accumulate(finite_or_worst, max), metric),
    }


def _values(scores: Iterable[float], metric: str) -> list[float | None]:
    """Return scores (higher is better) as values of a metric; None for a diverged trial."""
    sign = 1 if metric == "accuracy" else -1
    return [sign * score if math.isfinite(score) else None for score in scores]


def _choices(folder: Path) -> dict[str, dict[str, Any]]:
    paths = {name: folder / "tune" / f"{name}.json" for name, _ in STAGES}
    return {name: check_schema(Choice, read_json(p), p) for name, p in paths.items() if p.exists()}


def _from_seed(folder: Path) -> int | None:
    """Return the seed whose tuning was copied, or None."""
    source = folder / "tune" / "from.json"
    return int(read_json(source)["seed"]) if source.exists() else None
