"""Tuning on validation tasks: fields by Optuna, the headline step by looking; all on the ledger."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metalearn.component import Component
from metalearn.config.experiment import Experiment
from metalearn.config.sections import TuneRange
from metalearn.config.tuning import numbers_of
from metalearn.distributed.shared_work import Asked, curve
from metalearn.errors import ConfigError
from metalearn.evaluate.ledger import Entry, since
from metalearn.logger import log
from metalearn.run.loop import Job, headline_index
from metalearn.storage.files import read_json, write_json
from metalearn.storage.schema import Choice, checked
from metalearn.types import Meta


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
    """Under `budget.once`: copy what an earlier, finished seed of this row has chosen, and what
    that cost.

    The copied trials are then charged like those of an interrupted run.
    """
    home = job.folder / "tune"
    if not job.experiment.budget.once or home.exists():
        return
    asked = _without_seed(job.folder)
    for donor in sorted(job.folder.parent.glob("seed-*")):
        files = sorted((donor / "tune").glob("*.json"))
        if (
            donor == job.folder
            or not files
            or not (donor / "result.json").exists()
            or _without_seed(donor) != asked
        ):
            continue
        taken = job.folder / ".tune"
        shutil.rmtree(taken, ignore_errors=True)
        taken.mkdir()
        for file in files:
            shutil.copyfile(file, taken / file.name)
        write_json(taken / "from.json", {"seed": int(donor.name.removeprefix("seed-"))})
        taken.rename(home)  # all of it or nothing
        return


def _without_seed(folder: Path) -> Any:
    """What a run directory was asked for, whatever its seed; None where it cannot be told."""
    found = folder / "environment.json"
    return read_json(found).get("request") if found.exists() else None


def tuned_on_new_tasks(job: Job, meta: Meta) -> Experiment:
    """The experiment with its adapt-only fields and its headline step chosen on
    validation tasks.
    """
    experiment = job.experiment
    stored = job.folder / "tune" / "best.json"
    choice: dict[str, Any]
    if stored.exists():
        choice = checked(Choice, read_json(stored), stored)
        charge(job, [*choice["trials"], choice["headline"]])
        return with_choice(experiment, choice)
    _, late = split_fields(experiment)
    choice = {
        "parameters": {},
        "headline_step": None,
        "headline": {"cost": {}},
        "trials": [],
        "edge": [],
    }
    if late:
        choice |= search(job, late, lambda values, number: score_of(job, meta, values))
    if experiment.evaluate.headline == "tuned":
        found, cost = measured(job, lambda: score_of(job, meta, choice["parameters"]))
        choice |= {"headline_step": found[1], "headline": {"cost": cost}}
    if late or choice["headline_step"] is not None:
        write_json(stored, choice)
    return with_choice(experiment, choice)


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
    experiment = with_choice(job.experiment, {"parameters": values})
    evaluate, asked = (
        experiment.evaluate,
        Asked("valid", experiment.run.validate.episodes, job.seed),
    )
    found = curve(job.team, experiment, job.parts, [meta], asked, job.ledger.under("tune"))
    at = headline_index(evaluate.steps, evaluate.headline, found.mean, found.metric)
    value = float(found.mean[at])
    score = value if found.metric == "accuracy" else -value
    return (score if math.isfinite(score) else -math.inf), evaluate.steps[at], float(found.ci95[at])


def search(job: Job, ranges: dict[str, TuneRange], objective: Any) -> dict[str, Any]:
    """Ask, evaluate, tell: `budget.trials` times; recorded trials of an interrupted search are
    told, not repeated.
    """
    optuna = import_optuna("budget.trials", "tuning")
    budget = job.experiment.budget
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=budget.seed)
    )
    own = job.experiment.learns
    whole = {name for name in ranges if numbers_of(own, name) == {int}}
    spread = {name: _distribution(optuna, span, name in whole) for name, span in ranges.items()}
    first = {name: _asked(own, name, span) for name, span in ranges.items()}
    if all(value is not None for value in first.values()):
        study.enqueue_trial(first)  # the file's own values are the first trial
    record = job.folder / "tune" / "trials.json"
    known = {trial["number"]: trial for trial in (read_json(record) if record.exists() else [])}
    trials: list[dict[str, Any]] = []
    for number in range(budget.trials):
        trial = study.ask(spread)
        values = {name: _meant(ranges[name], value) for name, value in trial.params.items()}
        old = known.get(number)
        if old is not None and old["parameters"] == values:
            score, cost = -math.inf if old["score"] is None else float(old["score"]), old["cost"]
            charge(job, [old])
        else:
            said, cost = measured(job, partial(objective, values, number))
            score = float(said[0])
        study.tell(trial, max(score, -1e30))
        trials.append({"number": number, "parameters": values, "score": score, "cost": cost})
        write_json(record, trials)
    best = max(trials, key=lambda trial: (trial["score"], -trial["number"]))
    edge = [name for name, span in ranges.items() if _on_edge(best["parameters"][name], span)]
    if edge:
        log.warning(
            f"{job.experiment.label}: the best {', '.join(edge)} lies on the edge of "
            f"its range: widen it"
        )
    return {"parameters": best["parameters"], "trials": trials, "edge": edge}


def measured(job: Job, act: Callable[[], Any]) -> tuple[Any, Entry]:
    """What `act` returns, and what it wrote to the ledger as tuning, its own time included."""
    before = job.ledger.totals().get("tune", {})
    with job.ledger.span("tune"):
        value = act()
    return value, since(before, job.ledger.totals().get("tune", {}))


def charge(job: Job, trials: Sequence[dict[str, Any]]) -> None:
    """Write the recorded cost of trials, made by an earlier process, to the job's ledger as
    tuning.
    """
    for trial in trials:
        job.ledger.add("tune", **{"seconds": 0.0, **trial["cost"]})
        job.carried += trial["cost"].get("seconds") or 0.0


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


def _meant(span: TuneRange, asked: Any) -> Any:
    """The value of a field that a study's own value stands for."""
    return asked if span.values is None else span.values[asked]


def _asked(own: Component, name: str, span: TuneRange) -> Any:
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
