"""The `cost` block of a run: what was spent before any new task, and what one new task takes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from metalearn.config.build import Parts
from metalearn.config.experiment import Experiment
from metalearn.config.sections import Evaluate
from metalearn.evaluate.cost_block import EACH, UNKNOWN, per_query
from metalearn.evaluate.curves import learn_keys, learner_inputs
from metalearn.evaluate.ledger import COUNTS, FLOPS, CostLedger
from metalearn.rng import fold_in
from metalearn.types import Meta, Method, TaskSource

ALONE = 3  # tasks learned one by one for the latency column; one where a task is a whole search
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
    queries once. Predictions at every point of the curve are measuring, recorded under `setup`."""
    evaluate, traits = experiment.evaluate, method.traits
    once, tasks = spent.cost(), min(evaluate.chunk, evaluate.episodes)

    def learn(first: int, count: int, steps: int | None = None) -> CostLedger:
        return learning_ledger(method, meta, parts.test, evaluate, first, count, steps)

    lone = [learn(number, 1) for number in range(1 if traits.host_side else ALONE)]
    batched = None if traits.host_side else learn(0, tasks)
    stepped = traits.uses_steps and evaluate.steps[-1] > 0
    at_start = learn(0, tasks, 0) if stepped and batched else None
    ledger.require(("setup", *_before(method, experiment)))
    table = ledger.cost()
    for phase in EACH:
        alone = sorted(one.seconds(phase) for one in lone)[len(lone) // 2]
        before = table[phase] if table[phase]["seconds"] else None
        if before is not None and phase not in traits.phases:
            continue  # spent for all tasks together
        entry = batched.cost()[phase] if batched else None
        row, measuring = _of_a_task(phase, once[phase], entry, parts, evaluate, alone)
        table["setup"]["seconds"] += measuring
        table[phase] = row | {"seconds_batched": row["seconds"], "seconds_alone": alone}
        table[phase] |= {"tasks": evaluate.episodes} | ({"once": before} if before else {})
    _add_labels(table, parts.test, experiment.base_method.minibatches[1])
    if stepped:
        _add_start(table, at_start, tasks, traits.phases)
    if (given := experiment.model.provenance) is not None:
        _add_given(table, given["pretrain_flops"])
    return _with_queries(table, parts.test, evaluate)


def _with_queries(table: dict[str, Row], source: TaskSource, evaluate: Evaluate) -> dict[str, Row]:
    """The table with the cost of one query; a test task's queries are counted with padding."""
    episode = source.sample(fold_in(evaluate.seed, "episodes"), 1)
    queries = int(episode.query.x.shape[1])
    return table | {"predict": table["predict"] | per_query(table["predict"], queries)}


def _before(method: Method, experiment: Experiment) -> tuple[str, ...]:
    """Phases before any new task that this method cannot have gone without."""
    if method.step is None or experiment.start:
        return ()
    return ("pretrain",) if method.traits.consumes == "examples" else ("meta_train",)


def _add_given(table: dict[str, Row], flops: float | str) -> None:
    """Add what somebody else has paid for given weights: FLOPs or UNKNOWN; seconds are UNKNOWN.

    `own` keeps what this run itself spent in that phase."""
    row = table["pretrain"]
    own = {"flops": row["flops"], "seconds": row["seconds"]}
    known = isinstance(flops, float | int) and row["flops"] is not None
    whole = row["flops"] + flops if known else UNKNOWN
    table["pretrain"] = row | {"flops": whole, "seconds": UNKNOWN, "own": own}


def _shared(entry: Row, count: int) -> Row:
    """The entry of one of `count` tasks."""
    of_one = ("seconds", *FLOPS, *COUNTS, "energy_joules")
    known = {name for name in of_one if entry.get(name) is not None}
    return {name: _part(value, count) if name in known else value for name, value in entry.items()}


def _part(value: float, count: int) -> float:
    """A whole number where it can be one."""
    return value // count if isinstance(value, int) and value % count == 0 else value / count


def _of_a_task(
    phase: str, whole: Row, batched: Row | None, parts: Parts, evaluate: Evaluate, alone: float
) -> tuple[Row, float]:
    """The entry of one new task, and which of the seconds of the `whole` test were measuring.

    Where features were looked up in the test, it is the entry of a batch, which computed them.
    Without a batch, seconds of predicting are those of a task `alone`, at one point: the test may
    have predicted all points in one pass."""
    tested, looked_up = _shared(whole, evaluate.episodes), parts.learner.frozen is not None
    if batched is not None and (looked_up or phase == "predict"):
        row = _shared(batched, min(evaluate.chunk, evaluate.episodes))
    elif phase == "predict":
        seconds = min(alone, tested["seconds"])
        row = _shared(tested, len(evaluate.steps)) | {"seconds": seconds}
    else:
        row = tested
    if looked_up:
        names = ("seconds", "seconds_batched", "seconds_alone")
        return row | {"first_pass": dict.fromkeys(names, tested["seconds"])}, 0.0
    rest = whole["seconds"] - row["seconds"] * evaluate.episodes
    return row, rest if phase == "predict" else 0.0


def _add_labels(table: dict[str, Row], source: TaskSource, minibatch: int | None) -> None:
    """A method that adapts to a support set uses its labels, once, and at every step its examples,
    or a minibatch of them."""
    row, spec = table["adapt"], source.spec
    if row.get("seconds_batched") and not row["labels"]:
        labelled = spec.ways * spec.shots
        used = (minibatch or labelled) * max(int(row["gradient_steps"]), 1)
        row |= {"labels": min(labelled, used), "examples": used}


def _add_start(
    table: dict[str, Row], begun: CostLedger | None, tasks: int, phases: Collection[str]
) -> None:
    """What learning takes before the first step, so that cost at any step is known: it grows evenly
    from there.

    `begun` is what so many tasks took in no step; None of a method on the host, whose training
    begins with nothing: that is `retrain` after a search, else `adapt`."""
    if begun is None:
        training = "retrain" if "retrain" in phases else "adapt"
        table[training] |= {"flops_at_start": 0, "seconds_at_start": 0.0}
        return
    at_start = begun.cost()
    for phase in ("retrain", "adapt"):
        if table[phase].get("seconds_batched"):
            row = _shared(at_start[phase], tasks)
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
) -> CostLedger:
    """What it took to learn some test tasks by `steps` steps, default all, and predict once."""
    ledger = CostLedger(source.spec.device, counting=counting)
    batch = source.sample(fold_in(evaluate.seed, "episodes"), tasks, start)
    keys = learn_keys(batch.info["key"])
    points = (evaluate.steps[-1] if steps is None else steps,)
    method.learn(meta, *learner_inputs(batch), points, key=keys, ledger=ledger)
    return ledger
