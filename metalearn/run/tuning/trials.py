"""The trials of tuning: a training each, or tasks learned with the trained meta."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalearn.config.build import rebuild
from metalearn.config.sections import TuneRange
from metalearn.distributed.curve import TaskSet, curve
from metalearn.errors import ConfigError
from metalearn.evaluate.ledger import Entry, known, since
from metalearn.logger import log
from metalearn.rng import fold_in
from metalearn.run.checkpoints import validation_of
from metalearn.run.features import features_once
from metalearn.run.job import Job
from metalearn.run.loop import headline_index
from metalearn.run.tuning.choice import (
    record_trials,
    split_fields,
    store_choice,
    stored_choice,
    with_choice,
)
from metalearn.run.tuning.points import trial_points
from metalearn.storage.files import read_json, read_lines, write_json
from metalearn.types import Meta

Score = tuple[float, int, float]  # (score, its step, spread)
Objective = Callable[[dict[str, Any], int], Score]  # of values and the number of the trial
Trials = list[dict[str, Any]]


def tune_on_new_tasks(job: Job, meta: Meta, step: int | None) -> Job:
    """Return the job with adapt-only fields and the headline step chosen on validation tasks.

    `step` is that of the checkpoint of `meta`."""
    _, late = split_fields(job.experiment)
    choice = stored_choice(job, "best")  # also where config.yaml has the chosen step already
    if choice is None and not late and job.experiment.evaluate.headline != "tuned":
        return job
    if choice is None:
        choice = {"parameters": {}, "headline_step": None, "headline": {"cost": {}}}
        choice |= {"trials": [], "edge": []}
        if late:
            choice |= run_trials(
                job, late, lambda values, number: validation_score(job, meta, values)
            )
        if job.experiment.evaluate.headline == "tuned":
            choice |= _headline(job, meta, step, choice)
        store_choice(job, "best", choice)
    return job.with_experiment(with_choice(job.experiment, choice))


def _headline(job: Job, meta: Meta, step: int | None, choice: dict[str, Any]) -> dict[str, Any]:
    """Return the best step of the chosen values: that of their trial, or without trials that of the
    checkpoint's validation, neither of which is repeated."""
    values, trials = choice["parameters"], choice["trials"]
    steps = [trial["step"] for trial in trials if trial["parameters"] == values and "step" in trial]
    if not trials and (validation := score_in_training(job, step)) is not None:
        steps = [validation[1]]
    if steps:
        return {"headline_step": steps[0]}
    scored, cost = measure_cost(job, lambda: validation_score(job, meta, values))
    return {"headline_step": scored[1], "headline": {"cost": cost}}


def score_in_training(job: Job, step: int | None) -> Score | None:
    """Return the `validation_score` of a step's checkpoint from metrics.jsonl; None without one."""
    for row in job.ranks.on_rank0(lambda: read_lines(job.metrics)):
        if row.get("split") == "valid" and row["step"] == step:
            spread = row.get("accuracy_ci95") if "accuracy" in row else row.get("loss_ci95")
            return validation_of(row).score, int(row["at"]), math.nan if spread is None else spread
    return None


def validation_score(job: Job, meta: Meta, values: dict[str, Any]) -> Score:
    """Return (validation score, its step, spread) of the experiment with `values`; higher is
    better."""
    experiment, parts = job.experiment, job.parts
    if values:
        experiment = with_choice(experiment, {"parameters": values})
        parts = rebuild(parts, experiment)
    evaluate = experiment.evaluate
    tasks = TaskSet("valid", experiment.run.validate.episodes, job.seed)
    with features_once(parts, tasks, evaluate.chunk, job.ledger, job.ranks, "tune"):
        scores = curve(job.ranks, experiment, parts, [meta], tasks, job.ledger.under("tune"))
    index = headline_index(evaluate.steps, evaluate.headline, scores.mean, scores.metric)
    value = float(scores.mean[index])
    score = value if scores.metric == "accuracy" else -value
    return (
        (score if math.isfinite(score) else -math.inf),
        evaluate.steps[index],
        float(scores.ci95[index]),
    )


def run_trials(job: Job, ranges: dict[str, TuneRange], objective: Objective) -> dict[str, Any]:
    """Evaluate one point of the ranges after another while the budget lasts.

    Recorded trials of an interrupted search are not repeated. All ranks evaluate the same."""
    method, label = job.experiment.base_method, job.experiment.label
    key = fold_in(job.experiment.budget.seed, "tune", label, job.seed, *sorted(ranges))
    record = job.folder / "tune" / "trials.json"
    recorded = job.ranks.on_rank0(lambda: read_json(record) if record.exists() else [])
    trials: Trials = []
    for number, values in enumerate(trial_points(method, ranges, key)):
        if job.ranks.on_rank0(lambda: _is_budget_spent(job, trials)):
            break
        old = next((trial for trial in recorded if trial["number"] == number), None)
        trials.append({"number": number, **_outcome(job, values, number, old, objective)})
        job.ranks.on_rank0(lambda: write_json(record, trials))
    best = max(trials, key=lambda trial: (trial["score"], -trial["number"]))
    edge = [name for name, span in ranges.items() if _is_on_edge(name, span, best, trials)]
    if edge:
        text = f"no value beyond the best {', '.join(edge)} was tried: widen the range"
        log.warning(f"{label}: {text}")
    return {"parameters": best["parameters"], "trials": trials, "edge": edge}


def _is_budget_spent(job: Job, trials: Trials) -> bool:
    """Return whether the budget allows no further trial; it allows at least one.

    FLOPs are spent if another trial, at the cost of the most expensive one, would exceed them.
    Fields of training and fields of new tasks have half of them each."""
    budget = job.experiment.budget
    if budget.flops is None:
        return len(trials) >= budget.trials
    trial_flops = [known(trial["cost"].get("flops", 0.0)) for trial in trials]
    costs = [flops for flops in trial_flops if flops is not None]
    if len(costs) < len(trial_flops):
        text = f"FLOPs of {job.experiment.label} are not known: use budget.trials instead"
        raise ConfigError(("budget.flops", text))
    limit = budget.flops / sum(map(bool, split_fields(job.experiment)))
    if len(costs) == 1 and costs[0] > limit:
        text = f"one trial takes {costs[0]:.3g} FLOPs, more than the {limit:.3g} of its budget"
        log.warning(f"{job.experiment.label}: {text}")
    return bool(costs) and sum(costs) + max(costs) > limit


def _outcome(
    job: Job,
    values: dict[str, Any],
    number: int,
    old: dict[str, Any] | None,
    objective: Objective,
) -> dict[str, Any]:
    """Return values, score, its step and cost of a trial, or of its record `old`."""
    if old is not None and old["parameters"] == values:
        record_trials(job, [old])
        return {**old, "score": -math.inf if old["score"] is None else float(old["score"])}
    score, cost = measure_cost(job, lambda: objective(values, number))
    return {"parameters": values, "score": float(score[0]), "step": score[1], "cost": cost}


def measure_cost(job: Job, act: Callable[[], Any]) -> tuple[Any, Entry]:
    """Return the result of `act`, and its cost, which is recorded as tuning with its time."""
    before = job.ledger.totals().get("tune", {})
    with job.ledger.span("tune"):
        value = act()
    return value, since(before, job.ledger.totals().get("tune", {}))


def _is_on_edge(name: str, span: TuneRange, best: dict[str, Any], trials: Trials) -> bool:
    """Return whether the best value of a number is the smallest or the largest one tried."""
    if span.values is not None:
        return False
    tried = [trial["parameters"][name] for trial in trials]
    return not min(tried) < best["parameters"][name] < max(tried)


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "tune" / str(number)
