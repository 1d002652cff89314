"""The search before training: run once, stored in the run directory, recorded in the ledger."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from metalearn.component import CHOICE
from metalearn.errors import ConfigError, first_line
from metalearn.executors.step import TrainStep, build_train_step
from metalearn.logger import log
from metalearn.machine import cores, set_threads
from metalearn.rng import fold_in
from metalearn.run.directory import search_folder
from metalearn.run.job import Job
from metalearn.scopes.search_steps import Draw, Step, steps_made_by
from metalearn.storage.files import read_json, write_json
from metalearn.types import Key, MetaState, Method, Metrics

SPENT = "spent.json"
MIN_CAPTURED = 50  # steps of a candidate on CUDA from which a graph capture saves time


def search(job: Job) -> Job:
    """Return the job with the architecture from the shared search of its method, if it has one.

    An interrupted search continues from its record; the cost of a finished one is read."""
    cost_file = search_folder(job.folder) / SPENT
    if job.parts.method.prepare is None:
        spent = job.ranks.on_rank0(lambda: read_json(cost_file) if cost_file.exists() else {})
        if spent:
            job.ledger.add("search", **{"seconds": 0.0, **spent})
        return job
    result = job.ranks.on_rank0(lambda: _run_search(job, search_folder(job.folder)))
    return job.with_experiment(job.experiment.replace(found=tuple(result["genotype"])))


def _run_search(job: Job, folder: Path) -> dict[str, Any]:
    """Search; the record restores the cost of candidates that an earlier process trained."""
    assert job.parts.method.prepare is not None
    # A choice without its cost is searched again from the record, which has the cost.
    (folder / CHOICE).unlink(missing_ok=True)
    set_threads(job.experiment.run.threads or cores())
    log.info(f"{job.title}: searching for an architecture")
    key = fold_in(job.seed, "search")
    with steps_made_by(captured_steps) if job.parts.device != "cpu" else nullcontext():
        job.parts.method.prepare(job.parts.train, key, job.ledger, folder)
    result: dict[str, Any] = read_json(folder / CHOICE)
    write_json(folder / SPENT, job.ledger.totals()["search"])
    log.info(f"{job.title}: found {result['words']}, after {result['trials']} candidates")
    return result


def captured_steps(method: Method, draw: Draw, key: Key, tasks: int, steps: int) -> Step:
    """Return the training step of a candidate on CUDA: a captured graph if `steps` is large.

    A step that cannot be captured runs eagerly."""
    device = method.spec.device
    settings: Any = {"tasks": tasks, "device": device}

    def build(executor: str) -> TrainStep:
        return build_train_step(
            method, lambda key, count, _: draw(key, count), key, executor=executor, **settings
        )

    train_step = build("graph" if steps >= MIN_CAPTURED else "vmap")

    def step(state: MetaState, number: int) -> tuple[MetaState, Metrics]:
        nonlocal train_step
        try:
            return train_step.step(state, train_step.step_input(number))
        except (RuntimeError, TypeError, ValueError, ConfigError) as error:
            if steps < MIN_CAPTURED or number > 1:
                raise
            log.info(f"the training of a candidate is not captured: {first_line(error)}")
            train_step = build("vmap")
            return train_step.step(state, train_step.step_input(number))

    return step
