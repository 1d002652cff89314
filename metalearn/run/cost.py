"""The `cost` block of a run: what was spent before any new task, and what one new task takes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch

from metalearn.config.build import Parts
from metalearn.config.experiment import Experiment
from metalearn.config.sections import Evaluate
from metalearn.errors import Diverged, RankLost
from metalearn.evaluate.cost_block import EACH, UNKNOWN, examples_beside, per_query
from metalearn.evaluate.curves import learn_keys, learner_inputs, tasks_at_once
from metalearn.evaluate.ledger import COUNTS, FLOPS, CostLedger
from metalearn.logger import log
from metalearn.rng import fold_in
from metalearn.types import Meta, Method, TaskSource

ALONE = 3  # tasks learned one by one for the latency column; 1 if a task is a whole search
Row = dict[str, Any]


def cost_block(
    ledger: CostLedger,
    spent: CostLedger,
    method: Method,
    meta: Meta,
    parts: Parts,
    experiment: Experiment,
) -> dict[str, Row]:
    """Return the cost of every phase: `ledger` has the one-time cost, `spent` that of test tasks.

    Phases of new tasks are those of one task: `adapt` with all steps of the curve, `predict` its
    queries once; `flops_one_query` is that of one query. Predictions at every point of the curve
    are measuring, recorded under `setup`."""
    evaluate, traits = experiment.evaluate, method.traits
    once, tasks = spent.cost(), batch_size(evaluate, meta)
    learn = partial(learning_ledger, method, meta, parts.test, evaluate)
    singles = [learn(number, 1) for number in range(1 if traits.host_side else ALONE)]
    batched = None if traits.host_side else learn(0, tasks)
    others = None if traits.host_side else _flops_of_other_queries(learn, singles[0])
    has_steps = traits.uses_steps and evaluate.steps[-1] > 0
    at_start = learn(0, tasks, 0) if has_steps and batched else None
    ledger.require(("setup", *_required_phases(method, experiment)))
    table = ledger.cost()
    for phase in EACH:
        alone = sorted(single.seconds(phase) for single in singles)[len(singles) // 2]
        one_time = table[phase] if table[phase]["seconds"] else None
        if one_time is not None and phase not in traits.phases:
            continue  # spent for all tasks together
        entry = None if batched is None else _per_task_entry(batched.cost()[phase], tasks)
        row, measuring = _new_task_entry(phase, once[phase], entry, parts, evaluate, alone)
        table["setup"]["seconds"] += measuring
        table[phase] = row | {"seconds_batched": row["seconds"], "seconds_alone": alone}
        table[phase] |= {"tasks": evaluate.episodes} | ({"once": one_time} if one_time else {})
    _add_labels(table, parts.test, experiment.base_method.minibatches[1])
    if has_steps:
        _add_start(table, at_start, tasks, traits.phases)
    if (provenance := experiment.model.provenance) is not None:
        _add_provenance(table, provenance["pretrain_flops"])
    return _with_queries(table, parts.test, evaluate, traits.normalisation, others)


def _flops_of_other_queries(learn: Callable[..., CostLedger], alone: CostLedger) -> float | None:
    """Return what all queries but one add to predicting for one task `alone`; None if not known."""
    try:
        one = learn(0, 1, queries=1).cost()["predict"]["flops"]
    except (Diverged, RankLost, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError) as error:  # a method may refuse a single query
        log.info(f"the FLOPs of one query are an equal share of those of all ({error})")
        return None
    whole = alone.cost()["predict"]["flops"]
    return None if one is None or whole is None else whole - one


def _with_queries(
    table: dict[str, Row],
    source: TaskSource,
    evaluate: Evaluate,
    normalisation: str,
    others: float | None,
) -> dict[str, Row]:
    """Return the table with the cost of one query; padding queries are counted too.

    `others`: the FLOPs of all queries but one."""
    row, spec = table["predict"], source.spec
    if others is not None and row["flops"] is not None:
        row = row | {"flops_one_query": row["flops"] - others}
    episode = source.sample(fold_in(evaluate.seed, "episodes"), 1)
    beside = examples_beside(normalisation, spec.ways, spec.shots)
    row |= per_query(row, int(episode.query.x.shape[1]), beside)
    return table | {"predict": row}


def _required_phases(method: Method, experiment: Experiment) -> tuple[str, ...]:
    """Return the phases before any new task that this method cannot do without."""
    if method.step is None or experiment.start:
        return ()
    return ("pretrain",) if method.traits.consumes == "examples" else ("meta_train",)


def _add_provenance(table: dict[str, Row], flops: float | str) -> None:
    """Add what others spent on pretrained weights: FLOPs or UNKNOWN; seconds are UNKNOWN.

    `own` is the cost of this run itself in that phase."""
    row = table["pretrain"]
    own = {"flops": row["flops"], "seconds": row["seconds"]}
    is_known = isinstance(flops, float | int) and row["flops"] is not None
    total = row["flops"] + flops if is_known else UNKNOWN
    table["pretrain"] = row | {"flops": total, "seconds": UNKNOWN, "own": own}


def _per_task_entry(entry: Row, count: int) -> Row:
    """Return the entry of one of `count` tasks."""
    divisible = ("seconds", *FLOPS, *COUNTS, "energy_joules")
    measured = {name for name in divisible if entry.get(name) is not None}
    return {
        name: _divide(value, count) if name in measured else value for name, value in entry.items()
    }


def _divide(value: float, count: int) -> float:
    """Divide a value; the result stays an integer if it can."""
    return value // count if isinstance(value, int) and value % count == 0 else value / count


def _new_task_entry(
    phase: str, whole: Row, in_batch: Row | None, parts: Parts, evaluate: Evaluate, alone: float
) -> tuple[Row, float]:
    """Return the entry of one new task, and the seconds of the `whole` test that were measuring.

    If features were looked up in the test, it is that of a task in a batch, which computed them.
    Without a batch, the seconds of predicting are those of a task `alone`, at one point: the test
    may have predicted all points in one pass."""
    tested, looked_up = _per_task_entry(whole, evaluate.episodes), parts.learner.frozen is not None
    if in_batch is not None and (looked_up or phase == "predict"):
        row = in_batch
    elif phase == "predict":
        seconds = min(alone, tested["seconds"])
        row = _per_task_entry(tested, len(evaluate.steps)) | {"seconds": seconds}
    else:
        row = tested
    if looked_up:
        names = ("seconds", "seconds_batched", "seconds_alone")
        return row | {"first_pass": dict.fromkeys(names, tested["seconds"])}, 0.0
    remainder = whole["seconds"] - row["seconds"] * evaluate.episodes
    return row, remainder if phase == "predict" else 0.0


def batch_size(evaluate: Evaluate, meta: Meta) -> int:
    """Return the number of tasks of the batch whose seconds are measured, which is that of the
    test."""
    return tasks_at_once(min(evaluate.chunk, evaluate.episodes), meta)


def _add_labels(table: dict[str, Row], source: TaskSource, minibatch: int | None) -> None:
    """Add the labels of the support set, once, and its examples or a minibatch at every step."""
    row, spec = table["adapt"], source.spec
    if row.get("seconds_batched") and not row["labels"]:
        support_size = spec.ways * spec.shots
        used = (minibatch or support_size) * max(int(row["gradient_steps"]), 1)
        row |= {"labels": min(support_size, used), "examples": used}


def _add_start(
    table: dict[str, Row], start: CostLedger | None, tasks: int, phases: Collection[str]
) -> None:
    """Add the cost before the first step, from which the cost grows linearly with the step.

    `start` is the cost of `tasks` tasks with no step; None for a method on the host, whose training
    starts at no cost: that is `retrain` after a search, else `adapt`."""
    if start is None:
        training = "retrain" if "retrain" in phases else "adapt"
        table[training] |= {"flops_at_start": 0, "seconds_at_start": 0.0}
        return
    at_start = start.cost()
    for phase in ("retrain", "adapt"):
        if table[phase].get("seconds_batched"):
            row = _per_task_entry(at_start[phase], tasks)
            seconds = min(row["seconds"], table[phase]["seconds_batched"])
            table[phase] |= {"flops_at_start": row["flops"], "seconds_at_start": seconds}


def learning_ledger(
    method: Method,
    meta: Meta,
    source: TaskSource,
    evaluate: Evaluate,
    start: int,
    tasks: int,
    steps: int | None = None,
    *,
    counting: bool = True,
    queries: int | None = None,
) -> CostLedger:
    """Return the cost of learning some test tasks with `steps` steps (default: all) and of
    predicting the first `queries` of each (default: all) once."""
    ledger = CostLedger(source.spec.device, counting=counting)
    batch = source.sample(fold_in(evaluate.seed, "episodes"), tasks, start)
    keys = learn_keys(batch.info["key"])
    points = (evaluate.steps[-1] if steps is None else steps,)
    support, query_x = learner_inputs(batch)
    method.learn(meta, support, query_x[:, :queries], points, key=keys, ledger=ledger)
    return ledger
