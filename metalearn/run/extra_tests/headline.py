"""The headline score of a trained run under other settings, beside its main test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalearn.distributed.curve import TaskSet, curve
from metalearn.evaluate.ledger import known
from metalearn.run.job import Job
from metalearn.types import Meta


def headline_step(job: Job) -> int:
    """The step of the headline: an integer, or the last one where it is tuned."""
    evaluate = job.experiment.evaluate
    return evaluate.headline if isinstance(evaluate.headline, int) else evaluate.steps[-1]


def headline_test(job: Job, metas: Sequence[Meta]) -> tuple[dict[str, Any], Tensor]:
    """(record, scores [E] float32 on the host) of `metas` on the test tasks at the headline step.

    Its time is set-up, as it is no part of what the method costs."""
    step, evaluate = headline_step(job), job.experiment.evaluate
    evaluate = evaluate.model_copy(update={"steps": tuple(sorted({0, step}))})
    changed = job.experiment.replace(evaluate=evaluate)
    tasks, spent = TaskSet("test", evaluate.episodes, evaluate.seed, job.seed), job.ledger.aside()
    found = curve(job.ranks, changed, job.parts, metas, tasks, spent)
    cost = spent.totals().values()
    seconds = sum(entry["seconds"] for entry in cost)
    job.ledger.add("setup", seconds)
    flops = known(sum(entry.get("flops", 0.0) for entry in cost))
    record = {
        "metric": found.metric,
        "step": step,
        "value": float(found.mean[-1]),
        "ci95": float(found.ci95[-1]),
        "diverged": float(found.diverged_share[-1]),
        "cost": {"phase": "setup", "flops": flops, "seconds": seconds},
    }
    return record, found.scores[:, -1].float().cpu()
