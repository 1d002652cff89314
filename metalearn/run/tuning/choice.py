"""What tuning has chosen: read, stored, taken over from another seed, and written into a config."""

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
from metalearn.storage.schema import Choice, checked

# (file of a choice, what its fields act in)
STAGES = (("training", "training"), ("best", "new tasks"))


def split_fields(experiment: Experiment) -> tuple[dict[str, TuneRange], dict[str, TuneRange]]:
    """(fields that act in training, fields that act on new tasks alone)."""
    late = type(experiment.base_method).fields_at_adapt()
    train = {name: span for name, span in experiment.tune.items() if name.split(".")[0] not in late}
    return train, {
        name: span for name, span in experiment.tune.items() if name.split(".")[0] in late
    }


def tunes(experiment: Experiment) -> bool:
    """Whether a run chooses anything on validation tasks."""
    return any(split_fields(experiment)) or experiment.evaluate.headline == "tuned"


def take_over(job: Job) -> None:
    """Under `budget.once`: copy the choice of an earlier, finished seed of this row, and its cost.

    The copied trials are then recorded like those of an interrupted run."""
    if job.experiment.budget.once:
        job.ranks.on_rank0(lambda: _copy_choice(job.folder))


def _copy_choice(folder: Path) -> None:
    home, request = folder / "tune", _request_of(folder)
    if home.exists():
        return
    for donor in sorted(folder.parent.glob("seed-*")):
        files = sorted((donor / "tune").glob("*.json"))
        finished = donor != folder and files and (donor / "result.json").exists()
        if not finished or _request_of(donor) != request:
            continue
        copied = folder / ".tune"
        shutil.rmtree(copied, ignore_errors=True)
        copied.mkdir()
        for file in files:
            shutil.copyfile(file, copied / file.name)
        write_json(copied / "from.json", {"seed": int(donor.name.removeprefix("seed-"))})
        copied.rename(home)  # all of it or nothing
        return


def _request_of(folder: Path) -> Any:
    """What a run directory was asked for, whatever its seed; None where that is not recorded."""
    found = folder / "environment.json"
    return read_json(found).get("request") if found.exists() else None


def stored_choice(job: Job, name: str) -> dict[str, Any] | None:
    """What an earlier process chose, whose cost is recorded; None where nothing was."""
    path = job.folder / "tune" / f"{name}.json"

    def read() -> dict[str, Any] | None:
        return checked(Choice, read_json(path), path) if path.exists() else None

    choice = job.ranks.on_rank0(read)
    if choice is not None:
        record_trials(job, [*choice["trials"], choice.get("headline", {"cost": {}})])
    return choice


def store_choice(job: Job, name: str, choice: dict[str, Any]) -> None:
    job.ranks.on_rank0(lambda: write_json(job.folder / "tune" / f"{name}.json", choice))


def with_choice(experiment: Experiment, choice: dict[str, Any]) -> Experiment:
    """The experiment with chosen fields and headline step written into it."""
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
    """What tuning chose: fields, headline step, fields on the edge of their range; null without."""
    found: dict[str, Any] = {}
    for choice in _choices(folder).values():
        found |= choice["parameters"] | {"headline_step": choice.get("headline_step")}
        found["on_edge"] = found.get("on_edge", []) + choice["edge"]
    if found and (source := _from_seed(folder)) is not None:
        found["from_seed"] = source
    return found or None


def tuning_record(folder: Path, experiment: Experiment, metric: str) -> dict[str, Any] | None:
    """The field `tuning` of result.json: the scores of all trials on validation tasks; or null."""
    own, source = experiment.run.seeds[0], _from_seed(folder)
    found = {name: choice["trials"] for name, choice in _choices(folder).items()}
    stages = [_stage(acts, found[name], metric) for name, acts in STAGES if found.get(name)]
    budget = experiment.budget
    record: dict[str, Any] = {
        "trials": budget.trials or None,
        "flops": budget.flops,
        "once": budget.once,
    }
    record |= {"seed": own if source is None else source, "stages": stages}
    return record if stages else None


def _stage(acts: str, trials: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    scores = [trial["score"] for trial in trials]
    known = [-math.inf if score is None else float(score) for score in scores]
    costs = [trial["cost"].get("flops", 0.0) for trial in trials]
    return {
        "acts_in": acts,
        "fields": sorted(trials[0]["parameters"]),
        "trials": len(trials),
        "flops": None if None in costs else sum(costs),
        "scores": _values(known, metric),
        "best_so_far": _values(itertools.accumulate(known, max), metric),
    }


def _values(scores: Iterable[float], metric: str) -> list[float | None]:
    """Scores (higher is better) as values of a metric; None for a trial that diverged."""
    sign = 1 if metric == "accuracy" else -1
    return [sign * score if math.isfinite(score) else None for score in scores]


def _choices(folder: Path) -> dict[str, dict[str, Any]]:
    paths = {name: folder / "tune" / f"{name}.json" for name, _ in STAGES}
    return {name: checked(Choice, read_json(p), p) for name, p in paths.items() if p.exists()}


def _from_seed(folder: Path) -> int | None:
    """The seed that tuned in the place of this one."""
    source = folder / "tune" / "from.json"
    return int(read_json(source)["seed"]) if source.exists() else None
