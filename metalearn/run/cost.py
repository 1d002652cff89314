"""The `cost` block of a run: what was spent before any new task, and what one new task takes."""

from __future__ import annotations

from typing import Any

from metalearn.config.build import Parts
from metalearn.config.experiment import Experiment
from metalearn.config.sections import Evaluate
from metalearn.evaluate.cost_block import EACH
from metalearn.evaluate.curves import learn_keys, learner_inputs
from metalearn.evaluate.ledger import COUNTS, FLOPS, CostLedger
from metalearn.rng import fold_in
from metalearn.types import Meta, Method, TaskSource

ALONE = 3  # tasks learned one by one for the latency column; one where a task is a whole search
Row = dict[str, Any]


def cost_block(
    job: CostLedger,
    spent: CostLedger,
    method: Method,
    meta: Meta,
    parts: Parts,
    experiment: Experiment,
) -> dict[str, Row]:
    """Every phase: `job` has what was spent once, `spent` what learning the test tasks took.

    Phases of new tasks are those of one task: `adapt` with all steps of the curve, `predict` its
    queries once; seconds a task in a batch, and of one task learned by itself. The curve asks at
    every point: what that takes more than asking once is measuring, and stands under `setup`.
    """
    evaluate, source = experiment.evaluate, parts.test
    once, tasks = spent.cost(), min(evaluate.chunk, evaluate.episodes)
    lone = [
        _asked_once(method, meta, source, evaluate, n, 1)
        for n in range(1 if method.traits.host_side else ALONE)
    ]
    asked = (
        None if method.traits.host_side else _asked_once(method, meta, source, evaluate, 0, tasks)
    )
    stepped = method.traits.uses_steps and evaluate.steps[-1] > 0
    begun = (
        _asked_once(method, meta, source, evaluate, 0, tasks, steps=0)
        if stepped and asked
        else None
    )
    job.require(("setup", *_before(method, experiment)))
    table = job.cost()
    for phase in EACH:
        if phase not in method.traits.phases and table[phase]["seconds"]:
            continue  # spent for all tasks together
        row = _shared(once[phase], evaluate.episodes)
        if phase == "predict":
            row = (
                _shared(asked.cost()[phase], tasks) if asked else _shared(row, len(evaluate.steps))
            )
            extra = once[phase]["seconds"] - row["seconds"] * evaluate.episodes
            table["setup"]["seconds"] += extra
        alone = sorted(ledger.seconds(phase) for ledger in lone)[len(lone) // 2]
        times = {
            "seconds_batched": row["seconds"],
            "seconds_alone": alone,
            "tasks": evaluate.episodes,
        }
        over = (
            {"once": table[phase]}
            if phase in method.traits.phases and table[phase]["seconds"]
            else {}
        )
        table[phase] = row | times | over
    _labels(table, source)
    if stepped:
        _starts(table, begun, tasks)
    return table


def _before(method: Method, experiment: Experiment) -> tuple[str, ...]:
    """Phases before any new task that this method cannot have gone without."""
    if method.step is None or experiment.start:
        return ()
    return ("pretrain",) if method.traits.consumes == "examples" else ("meta_train",)


def _shared(entry: Row, count: int) -> Row:
    """The entry of one of `count` tasks."""
    of_one = ("seconds", *FLOPS, *COUNTS, "energy_joules")
    told = {name for name in of_one if entry.get(name) is not None}
    return {name: _part(value, count) if name in told else value for name, value in entry.items()}


def _part(value: float, count: int) -> float:
    """A whole number where it can be one."""
    return value // count if isinstance(value, int) and value % count == 0 else value / count


def _labels(table: dict[str, Row], source: TaskSource) -> None:
    """A method that adapts to a support set uses its labels, once, and its examples at every
    step.
    """
    row, spec = table["adapt"], source.spec
    if row.get("seconds_batched") and not row["labels"]:
        labelled = spec.ways * spec.shots
        row |= {"labels": labelled, "examples": labelled * max(int(row["gradient_steps"]), 1)}


def _starts(table: dict[str, Row], begun: CostLedger | None, tasks: int) -> None:
    """What learning takes before the first step, so that cost at any step is known: it grows evenly
    from there.

    `begun` is what so many tasks took in no step; None of a search on the host, whose training
    begins with nothing."""
    if begun is None:
        table["retrain"] |= {"flops_at_start": 0, "seconds_at_start": 0.0}
        return
    at_start = begun.cost()
    for phase in ("retrain", "adapt"):
        if table[phase].get("seconds_batched"):
            row = _shared(at_start[phase], tasks)
            seconds = min(row["seconds"], table[phase]["seconds_batched"])
            table[phase] |= {"flops_at_start": row["flops"], "seconds_at_start": seconds}


def _asked_once(
    method: Method,
    meta: Meta,
    source: TaskSource,
    evaluate: Evaluate,
    start: int,
    tasks: int,
    steps: int | None = None,
) -> CostLedger:
    """Some test tasks learned with so many steps, default all, and asked once."""
    ledger = CostLedger(source.spec.device)
    batch = source.sample(fold_in(evaluate.seed, "episodes"), tasks, start)
    keys = learn_keys(batch.info["key"])
    points = (evaluate.steps[-1] if steps is None else steps,)
    method.learn(meta, *learner_inputs(batch), points, key=keys, ledger=ledger)
    return ledger
