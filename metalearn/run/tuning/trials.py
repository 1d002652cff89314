"""The trials of tuning: a training each, or tasks learned with the trained meta; on the ledger."""

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

Found = tuple[float, int, float]  # (score, its step, spread)
Objective = Callable[[dict[str, Any], int], Found]  # of values and the number of the trial
Trials = list[dict[str, Any]]


def tune_on_new_tasks(job: Job, meta: Meta, step: int | None) -> Job:
    """The job with adapt-only fields and the headline step chosen on validation tasks.

    `step` is that of the checkpoint that `meta` is of."""
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
            choice |= _headline(job, meta, step, choice)
        store_choice(job, "best", choice)
    return job.with_experiment(with_choice(job.experiment, choice))


def _headline(job: Job, meta: Meta, step: int | None, choice: dict[str, Any]) -> dict[str, Any]:
    """The best step of the values chosen: that of their trial, or without trials that of the
    checkpoint's validation, neither of which is repeated."""
    values, trials = choice["parameters"], choice["trials"]
    known = [one["step"] for one in trials if one["parameters"] == values and "step" in one]
    if not trials and (seen := score_in_training(job, step)) is not None:
        known = [seen[1]]
    if known:
        return {"headline_step": known[0]}
    found, cost = measured(job, lambda: score_of(job, meta, values))
    return {"headline_step": found[1], "headline": {"cost": cost}}


def score_in_training(job: Job, step: int | None) -> Found | None:
    """What `score_of` would give for the checkpoint of a step, from its validation.

    None where there was none."""
    for row in job.ranks.on_rank0(lambda: read_lines(job.metrics)):
        if row.get("split") == "valid" and row["step"] == step:
            spread = row.get("accuracy_ci95") if "accuracy" in row else row.get("loss_ci95")
            return validation_of(row).score, int(row["at"]), math.nan if spread is None else spread
    return None


def score_of(job: Job, meta: Meta, values: dict[str, Any]) -> Found:
    """(validation score, its step, spread) of the experiment with `values`; higher is better."""
    experiment, parts = job.experiment, job.parts
    if values:
        experiment = with_choice(experiment, {"parameters": values})
        parts = rebuild(parts, experiment)
    evaluate = experiment.evaluate
    tasks = TaskSet("valid", experiment.run.validate.episodes, job.seed)
    with features_once(parts, tasks, evaluate.chunk, job.ledger, job.ranks, "tune"):
        found = curve(job.ranks, experiment, parts, [meta], tasks, job.ledger.under("tune"))
    at = headline_index(evaluate.steps, evaluate.headline, found.mean, found.metric)
    value = float(found.mean[at])
    score = value if found.metric == "accuracy" else -value
    return (score if math.isfinite(score) else -math.inf), evaluate.steps[at], float(found.ci95[at])


def run_trials(job: Job, ranges: dict[str, TuneRange], objective: Objective) -> dict[str, Any]:
    """Evaluate one point of the ranges after another while the budget lasts.

    Recorded trials of an interrupted search are not repeated. All ranks try the same."""
    own, label = job.experiment.base_method, job.experiment.label
    key = fold_in(job.experiment.budget.seed, "tune", label, job.seed, *sorted(ranges))
    record = job.folder / "tune" / "trials.json"
    done = job.ranks.on_rank0(lambda: read_json(record) if record.exists() else [])
    trials: Trials = []
    for number, values in enumerate(trial_points(own, ranges, key)):
        if job.ranks.on_rank0(lambda: _is_spent(job, trials)):
            break
        old = next((one for one in done if one["number"] == number), None)
        trials.append({"number": number, **_outcome(job, values, number, old, objective)})
        job.ranks.on_rank0(lambda: write_json(record, trials))
    best = max(trials, key=lambda trial: (trial["score"], -trial["number"]))
    edge = [name for name, span in ranges.items() if _on_edge(name, span, best, trials)]
    if edge:
        text = f"no value beyond the best {', '.join(edge)} was tried: widen the range"
        log.warning(f"{label}: {text}")
    return {"parameters": best["parameters"], "trials": trials, "edge": edge}


def _is_spent(job: Job, trials: Trials) -> bool:
    """Whether the budget allows no other trial; it allows one at least.

    FLOPs are spent where another trial, as costly as the costliest one, would exceed them. Fields
    of training and fields of new tasks have half of them each."""
    budget = job.experiment.budget
    if budget.flops is None:
        return len(trials) >= budget.trials
    found = [known(trial["cost"].get("flops", 0.0)) for trial in trials]
    costs = [flops for flops in found if flops is not None]
    if len(costs) < len(found):
        text = f"FLOPs of {job.experiment.label} are not known: use budget.trials instead"
        raise ConfigError(("budget.flops", text))
    share = budget.flops / sum(map(bool, split_fields(job.experiment)))
    if len(costs) == 1 and costs[0] > share:
        text = f"one trial takes {costs[0]:.3g} FLOPs, more than the {share:.3g} of its budget"
        log.warning(f"{job.experiment.label}: {text}")
    return bool(costs) and sum(costs) + max(costs) > share


def _outcome(
    job: Job,
    values: dict[str, Any],
    number: int,
    old: dict[str, Any] | None,
    objective: Objective,
) -> dict[str, Any]:
    """Values, score, its step and cost of a trial, or of its record `old`."""
    if old is not None and old["parameters"] == values:
        record_trials(job, [old])
        return {**old, "score": -math.inf if old["score"] is None else float(old["score"])}
    found, cost = measured(job, lambda: objective(values, number))
    return {"parameters": values, "score": float(found[0]), "step": found[1], "cost": cost}


def measured(job: Job, act: Callable[[], Any]) -> tuple[Any, Entry]:
    """What `act` returns, and what it wrote to the ledger as tuning, its own time included."""
    before = job.ledger.totals().get("tune", {})
    with job.ledger.span("tune"):
        value = act()
    return value, since(before, job.ledger.totals().get("tune", {}))


def _on_edge(name: str, span: TuneRange, best: dict[str, Any], trials: Trials) -> bool:
    """Whether the best value of a number has no worse one tried on each of its sides."""
    if span.values is not None:
        return False
    tried = [trial["parameters"][name] for trial in trials]
    return not min(tried) < best["parameters"][name] < max(tried)


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "tune" / str(number)
