"""Tuning on validation tasks: fields by Optuna, the headline step by looking; all on the ledger."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metalearn.component import Component
from metalearn.config.build import rebuild
from metalearn.config.experiment import Experiment
from metalearn.config.sections import TuneRange
from metalearn.config.tuning import numbers_of
from metalearn.distributed.curve import TaskSet, curve
from metalearn.errors import ConfigError
from metalearn.evaluate.ledger import Entry, since
from metalearn.logger import log
from metalearn.run.job import Job
from metalearn.run.loop import headline_index
from metalearn.storage.files import read_json, write_json
from metalearn.storage.schema import Choice, checked
from metalearn.types import Meta

# (values, number of the trial) -> (score, its step, spread)
Objective = Callable[[dict[str, Any], int], tuple[float, int, float]]


def split_fields(experiment: Experiment) -> tuple[dict[str, TuneRange], dict[str, TuneRange]]:
    """(fields that act in training, fields that act only on new tasks and re-use the trained
    meta).
    """
    late = type(experiment.learns).fields_at_adapt()
    train = {name: span for name, span in experiment.tune.items() if name not in late}
    return train, {name: span for name, span in experiment.tune.items() if name in late}


def tunes(experiment: Experiment) -> bool:
    """Whether a run chooses anything on validation tasks."""
    return any(split_fields(experiment)) or experiment.evaluate.headline == "tuned"


def take_over(job: Job) -> None:
    """Under `budget.once`: copy what an earlier, finished seed of this row has chosen, and its
    cost. The copied trials are then recorded like those of an interrupted run.
    """
    if job.experiment.budget.once:
        job.ranks.first(lambda: _copy_choice(job.folder))


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

    choice = job.ranks.first(read)
    if choice is not None:
        record_trials(job, [*choice["trials"], choice.get("headline", {"cost": {}})])
    return choice


def store_choice(job: Job, name: str, choice: dict[str, Any]) -> None:
    job.ranks.first(lambda: write_json(job.folder / "tune" / f"{name}.json", choice))


def tune_on_new_tasks(job: Job, meta: Meta) -> Job:
    """The job with adapt-only fields and the headline step chosen on validation tasks."""
    _, late = split_fields(job.experiment)
    if not late and job.experiment.evaluate.headline != "tuned":
        return job
    choice = stored_choice(job, "best")
    if choice is None:
        choice = {"parameters": {}, "headline_step": None, "headline": {"cost": {}}}
        choice |= {"trials": [], "edge": []}
        if late:
            choice |= run_trials(job, late, lambda values, number: score_of(job, meta, values))
        if job.experiment.evaluate.headline == "tuned":
            values = choice["parameters"]
            found, cost = measured(job, lambda: score_of(job, meta, values))
            choice |= {"headline_step": found[1], "headline": {"cost": cost}}
        store_choice(job, "best", choice)
    return job.with_experiment(with_choice(job.experiment, choice))


def with_choice(experiment: Experiment, choice: dict[str, Any]) -> Experiment:
    """The experiment with chosen fields and headline step written into it."""
    evaluate = experiment.evaluate
    if choice.get("headline_step") is not None:
        evaluate = evaluate.model_copy(update={"headline_step": int(choice["headline_step"])})
    own = experiment.learns
    learns = type(own).model_validate({**own.model_dump(), **choice["parameters"]})
    return experiment.with_learns(learns).replace(evaluate=evaluate)


def score_of(job: Job, meta: Meta, values: dict[str, Any]) -> tuple[float, int, float]:
    """(validation score, its step, spread) of the experiment with `values`; the score is higher for
    better.
    """
    experiment, parts = job.experiment, job.parts
    if values:
        experiment = with_choice(experiment, {"parameters": values})
        parts = rebuild(parts, experiment)
    evaluate = experiment.evaluate
    tasks = TaskSet("valid", experiment.run.validate.episodes, job.seed)
    found = curve(job.ranks, experiment, parts, [meta], tasks, job.ledger.under("tune"))
    at = headline_index(evaluate.steps, evaluate.headline, found.mean, found.metric)
    value = float(found.mean[at])
    score = value if found.metric == "accuracy" else -value
    return (score if math.isfinite(score) else -math.inf), evaluate.steps[at], float(found.ci95[at])


def run_trials(job: Job, ranges: dict[str, TuneRange], objective: Objective) -> dict[str, Any]:
    """Ask the sampler, evaluate, report, `budget.trials` times; recorded trials of an interrupted
    search are not repeated. All ranks ask the same sampler the same.
    """
    optuna = import_optuna("budget.trials", "tuning")
    budget, own = job.experiment.budget, job.experiment.learns
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=budget.seed)
    )
    whole = {name for name in ranges if numbers_of(own, name) == {int}}
    spread = {name: _distribution(optuna, span, name in whole) for name, span in ranges.items()}
    first = {name: _encoded(own, name, span) for name, span in ranges.items()}
    if all(value is not None for value in first.values()):
        study.enqueue_trial(first)  # the file's own values are the first trial
    record = job.folder / "tune" / "trials.json"
    known = job.ranks.first(lambda: read_json(record) if record.exists() else [])
    trials: list[dict[str, Any]] = []
    for number in range(budget.trials):
        trial = study.ask(spread)
        values = {name: _decoded(ranges[name], value) for name, value in trial.params.items()}
        old = next((one for one in known if one["number"] == number), None)
        score, cost = _outcome(job, values, number, old, objective)
        study.tell(trial, max(score, -1e30))
        trials.append({"number": number, "parameters": values, "score": score, "cost": cost})
        job.ranks.first(lambda: write_json(record, trials))
    best = max(trials, key=lambda trial: (trial["score"], -trial["number"]))
    edge = [name for name, span in ranges.items() if _on_edge(best["parameters"][name], span)]
    if edge:
        text = f"the best {', '.join(edge)} lies on the edge of its range: widen it"
        log.warning(f"{job.experiment.label}: {text}")
    return {"parameters": best["parameters"], "trials": trials, "edge": edge}


def _outcome(
    job: Job,
    values: dict[str, Any],
    number: int,
    old: dict[str, Any] | None,
    objective: Objective,
) -> tuple[float, Entry]:
    """(score, cost) of a trial, or of its record `old`."""
    if old is not None and old["parameters"] == values:
        record_trials(job, [old])
        return (-math.inf if old["score"] is None else float(old["score"])), old["cost"]
    found, cost = measured(job, lambda: objective(values, number))
    return float(found[0]), cost


def measured(job: Job, act: Callable[[], Any]) -> tuple[Any, Entry]:
    """What `act` returns, and what it wrote to the ledger as tuning, its own time included."""
    before = job.ledger.totals().get("tune", {})
    with job.ledger.span("tune"):
        value = act()
    return value, since(before, job.ledger.totals().get("tune", {}))


def record_trials(job: Job, trials: Sequence[dict[str, Any]]) -> None:
    """Write the cost of trials of an earlier process to the job's ledger as tuning."""
    for trial in trials:
        job.ledger.add("tune", **{"seconds": 0.0, **trial["cost"]})


def import_optuna(place: str, what: str) -> Any:
    """The package, quiet; ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            (place, f"{what} needs the package optuna: pip install optuna")
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, span: TuneRange, whole: bool) -> Any:
    if span.values is not None:  # by their places: values may be lists and whole components
        return optuna.distributions.CategoricalDistribution(list(range(len(span.values))))
    log = span.distribution == "log_uniform"
    if whole or span.distribution == "int_uniform":
        return optuna.distributions.IntDistribution(int(span.min or 0), int(span.max or 0), log=log)
    return optuna.distributions.FloatDistribution(span.min, span.max, log=log)


def _decoded(span: TuneRange, asked: Any) -> Any:
    """The value of a field that a study's own value stands for."""
    return asked if span.values is None else span.values[asked]


def _encoded(own: Component, name: str, span: TuneRange) -> Any:
    """The study's value of what a component has now; None where it lies outside the range."""
    now = getattr(own, name)
    if span.values is not None:
        kind, data = type(own), own.model_dump()
        same = [
            getattr(kind.model_validate({**data, name: value}), name) == now
            for value in span.values
        ]
        return same.index(True) if True in same else None
    inside = isinstance(now, (int, float)) and span.min is not None and span.max is not None
    return now if inside and span.min <= now <= span.max else None


def _on_edge(value: Any, span: TuneRange) -> bool:
    """Within 2 % of an end, on the range's own scale."""
    if span.min is None or span.max is None:
        return False
    scale = math.log if span.distribution == "log_uniform" else float
    low, high, here = scale(span.min), scale(span.max), scale(value)
    return min(here - low, high - here) < 0.02 * (high - low)


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "tune" / str(number)
