"""The headline score of a trained run under other settings than its main test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalearn.distributed.curve import TaskSet, curve
from metalearn.evaluate.ledger import known
from metalearn.run.job import Job
from metalearn.types import Meta


def headline_step(job: Job) -> int:
    """Return the step of the headline: an integer, or the last one if it is tuned."""
    evaluate = job.experiment.evaluate
    return evaluate.headline if isinstance(evaluate.headline, int) else evaluate.steps[-1]


def headline_test(job: Job, metas: Sequence[Meta]) -> tuple[dict[str, Any], Tensor]:
    """Return (record, scores [E] float32 on the host) of `metas` on the test tasks at the headline
    step.

    Its time is set-up, as it is not a cost of the method."""
    step, evaluate = headline_step(job), job.experiment.evaluate
    evaluate = evaluate.model_copy(update={"steps": tuple(sorted({0, step}))})
    experiment = job.experiment.replace(evaluate=evaluate)
    tasks, spent = TaskSet("test", evaluate.episodes, evaluate.seed, job.seed), job.ledger.aside()
    test_curve = curve(job.ranks, experiment, job.parts, metas, tasks, spent)
    cost = spent.totals().values()
    seconds = sum(entry["seconds"] for entry in cost)
    job.ledger.add("setup", seconds)
    flops = known(sum(entry.get("flops", 0.0) for entry in cost))
    record = {
        "metric": test_curve.metric,
        "step": step,
        "value": float(test_curve.mean[-1]),
        "ci95": float(test_curve.ci95[-1]),
        "diverged": float(test_curve.diverged_share[-1]),
        "cost": {"phase": "setup", "flops": flops, "seconds": seconds},
    }
    return record, test_curve.scores[:, -1].float().cpu()
