"""Tuning on validation tasks: fields by Optuna, the headline step by looking; all on the ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.evaluate.ledger import Entry, since
from metalearn.run.build import method_for
from metalearn.run.config import Experiment, numbers_of
from metalearn.run.files import read_json, write_json
from metalearn.run.loop import Job, headline_index
from metalearn.run.sections import TuneRange
from metalearn.types import Meta


def split_fields(experiment: Experiment) -> tuple[dict[str, TuneRange], dict[str, TuneRange]]:
    """(fields that act in training, fields that act only on new tasks and re-use the trained meta)."""
    late = type(experiment.method).fields_at_adapt()
    train = {name: span for name, span in experiment.tune.items() if name not in late}
    return train, {name: span for name, span in experiment.tune.items() if name in late}


def tuned_on_new_tasks(job: Job, meta: Meta) -> Experiment:
    """The experiment with its adapt-only fields and its headline step chosen on validation tasks."""
    experiment = job.experiment
    stored = job.folder / "tune" / "best.json"
    choice: dict[str, Any]
    if stored.exists():
        choice = read_json(stored)
        charge(job, [*choice["trials"], choice["headline"]])
        return with_choice(experiment, choice)
    _, late = split_fields(experiment)
    choice = {"parameters": {}, "headline_step": None, "headline": {"cost": {}}, "trials": [], "edge": []}
    if late:
        choice |= search(job, late, lambda values, number: score_of(job, meta, values))
    if experiment.evaluate.headline == "tuned":
        found, cost = _measured(job, lambda: score_of(job, meta, choice["parameters"]))
        choice |= {"headline_step": found[1], "headline": {"cost": cost}}
    if late or choice["headline_step"] is not None:
        write_json(stored, choice)
    return with_choice(experiment, choice)


def with_choice(experiment: Experiment, choice: dict[str, Any]) -> Experiment:
    """The experiment with chosen fields and headline step written into it."""
    evaluate = experiment.evaluate
    if choice.get("headline_step") is not None:
        evaluate = evaluate.model_copy(update={"headline_step": int(choice["headline_step"])})
    method = type(experiment.method).model_validate({**experiment.method.model_dump(), **choice["parameters"]})
    return experiment.replace(method=method, evaluate=evaluate)


def score_of(job: Job, meta: Meta, values: dict[str, Any]) -> tuple[float, int, float]:
    """(validation score, its step, spread) of the experiment with `values`; the score is higher for better."""
    experiment = with_choice(job.experiment, {"parameters": values})
    method = method_for(experiment, job.parts.valid.spec)
    evaluate = experiment.evaluate
    episodes = experiment.run.validate.episodes
    curve = learning_curve(
        method,
        meta,
        job.parts.valid,
        evaluate.steps,
        episodes,
        job.seed,
        chunk=evaluate.chunk,
        ledger=job.ledger.under("tune"),
    )
    at = headline_index(evaluate.steps, evaluate.headline, curve.mean, curve.metric)
    value = float(curve.mean[at])
    score = value if curve.metric == "accuracy" else -value
    return (score if math.isfinite(score) else -math.inf), evaluate.steps[at], float(curve.ci95[at])


def search(job: Job, ranges: dict[str, TuneRange], objective: Any) -> dict[str, Any]:
    """Ask, evaluate, tell: `budget.trials` times; recorded trials of an interrupted search are told, not repeated."""
    optuna = _optuna()
    budget = job.experiment.budget
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=budget.seed))
    now = job.experiment.method.model_dump()
    whole = {name for name in ranges if numbers_of(job.experiment.method, name) == {int}}
    spread = {name: _distribution(optuna, span, name in whole) for name, span in ranges.items()}
    if all(_inside(now[name], span) for name, span in ranges.items()):
        study.enqueue_trial({name: now[name] for name in ranges})  # the file's own values are the first trial
    record = job.folder / "tune" / "trials.json"
    known = {trial["number"]: trial for trial in (read_json(record) if record.exists() else [])}
    trials: list[dict[str, Any]] = []
    for number in range(budget.trials):
        trial = study.ask(spread)
        values = dict(trial.params)
        old = known.get(number)
        if old is not None and old["parameters"] == values:
            score, cost = -math.inf if old["score"] is None else float(old["score"]), old["cost"]
            charge(job, [old])
        else:
            said, cost = _measured(job, partial(objective, values, number))
            score = float(said[0])
        study.tell(trial, max(score, -1e30))
        trials.append({"number": number, "parameters": values, "score": score, "cost": cost})
        write_json(record, trials)
    best = max(trials, key=lambda trial: (trial["score"], -trial["number"]))
    edge = [name for name, span in ranges.items() if _on_edge(best["parameters"][name], span)]
    if edge:
        job.say(f"warning: {job.experiment.label}: the best {', '.join(edge)} lies on the edge of its range: widen it")
    return {"parameters": best["parameters"], "trials": trials, "edge": edge}


def _measured(job: Job, act: Callable[[], Any]) -> tuple[Any, Entry]:
    """What `act` returns, and what it wrote to the ledger as tuning, its own time included."""
    before = job.ledger.totals().get("tune", {})
    with job.ledger.span("tune"):
        value = act()
    return value, since(before, job.ledger.totals().get("tune", {}))


def charge(job: Job, trials: Sequence[dict[str, Any]]) -> None:
    """Write the recorded cost of trials, made by an earlier process, to the job's ledger as tuning."""
    for trial in trials:
        job.ledger.add("tune", **{"seconds": 0.0, **trial["cost"]})
        job.carried += trial["cost"].get("seconds") or 0.0


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(("budget.trials", "tuning needs the package optuna: pip install optuna")) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, span: TuneRange, whole: bool) -> Any:
    if span.values is not None:
        return optuna.distributions.CategoricalDistribution(list(span.values))
    log = span.distribution == "log_uniform"
    if whole or span.distribution == "int_uniform":
        return optuna.distributions.IntDistribution(int(span.min or 0), int(span.max or 0), log=log)
    return optuna.distributions.FloatDistribution(span.min, span.max, log=log)


def _inside(value: Any, span: TuneRange) -> bool:
    if span.values is not None:
        return value in span.values
    return (
        isinstance(value, (int, float))
        and span.min is not None
        and span.max is not None
        and span.min <= value <= span.max
    )


def _on_edge(value: Any, span: TuneRange) -> bool:
    """Within 2 % of an end, on the range's own scale."""
    if span.min is None or span.max is None:
        return False
    scale = math.log if span.distribution == "log_uniform" else float
    low, high, here = scale(span.min), scale(span.max), scale(value)
    return min(here - low, high - here) < 0.02 * (high - low)


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "tune" / str(number)
