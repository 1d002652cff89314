"""`nan.jsonl`: meta-steps whose numbers were not finite.

One line per step: the step, the policy (`run.on_nan`), and the seeds of the tasks of that step and
of the one before, whose update may be what spoiled the parameters. Step n (from 1) learns from
`fold_in(seed, "train", n - 1)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.executors.step import make_batch_sampler
from metalearn.rng import fold_in
from metalearn.run.job import Job
from metalearn.storage.files import append_lines, cut_lines, read_lines


def log_path(job: Job) -> Path:
    return job.folder / "nan.jsonl"


def cut_log(job: Job, done: int) -> None:
    """Remove lines of steps that a resumed run repeats.

    Raises ConfigError if the run sampled other tasks instead of bad ones, as the policy
    `rollback` of older versions did."""
    path = log_path(job)
    if path.exists():
        cut_lines(path, done)
    if any(row.get("policy") == "rollback" for row in read_lines(path)):
        text = "shows that this run was rolled back and sampled other tasks, which was removed"
        raise ConfigError((str(path), f"{text}: restart with run.on_nan=skip"))


def log_step(job: Job, policy: str, step: int) -> None:
    """Add a line about a step."""
    batches = [_batch(job, number) for number in (step - 1, step) if number > 0]
    row = {"step": step, "policy": policy, "seed": job.seed, "batches": batches}
    append_lines(log_path(job), [row])


def _batch(job: Job, step: int) -> dict[str, Any]:
    run, parts = job.experiment.run, job.parts
    sample = make_batch_sampler(parts.train, parts.method, run.examples_per_step)
    data = sample(fold_in(job.seed, "train", step - 1), run.tasks_per_step, 0)
    # a batch of examples has one seed
    keys = data.info["key"].tolist() if hasattr(data, "info") else None
    return {"step": step, "number": step - 1, "keys": keys}
