"""Checkpoints along meta-training, tested on the same tasks: a shorter training costs less.

`evaluate.along` names fractions of the meta-steps. The state there is kept, and tested at the
headline step alone; the cost of training after it is the difference of the ledger from that of the
end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metalearn.distributed.curve import TaskSet, curve
from metalearn.evaluate.cost_block import ONCE
from metalearn.evaluate.ledger import known
from metalearn.run.checkpoints import steps_along, stored_state
from metalearn.run.job import Job
from metalearn.storage import checkpoint
from metalearn.storage.files import read_lines
from metalearn.types import MetaState

AXES = ("flops", "seconds")


class Along(NamedTuple):
    """The field `along` of result.json, and the scores behind it."""

    rows: list[dict[str, Any]]
    scores: Any = None  # [K, E] float32: of each checkpoint at the headline step


def test_along(job: Job, last: MetaState) -> Along:
    """Test the checkpoints along a finished training; the time of these tests is set-up, not a
    cost of the method."""
    stored_steps = job.ranks.on_rank0(lambda: checkpoint.steps_in(job.checkpoints))
    steps = [step for step in steps_along(job.experiment) if step in stored_steps]
    if job.parts.method.step is None or not steps:
        return Along([])
    evaluate = job.experiment.evaluate
    headline = evaluate.headline if isinstance(evaluate.headline, int) else evaluate.steps[-1]
    headline_only = evaluate.model_copy(update={"steps": tuple(sorted({0, headline}))})
    experiment, rows, scores = job.experiment.replace(evaluate=headline_only), [], []
    tasks = TaskSet("test", evaluate.episodes, evaluate.seed, job.seed)
    later = job.ranks.on_rank0(lambda: _spent_later(job, steps))
    for step in steps:
        state, spent = stored_state(job.folder, step, last, job.ranks), job.ledger.aside()
        step_curve = curve(job.ranks, experiment, job.parts, [state.meta], tasks, spent)
        seconds = sum(entry["seconds"] for entry in spent.totals().values())
        job.ledger.add("setup", seconds)
        row = {"step": step, "later": later[step], "value": float(step_curve.mean[-1])}
        rows.append({**row, "ci95": float(step_curve.ci95[-1]), "seconds": seconds})
        scores.append(step_curve.scores[:, -1].float().cpu().numpy())
    return Along(rows, np.stack(scores))


def _spent_later(job: Job, steps: list[int]) -> dict[int, dict[str, float | None]]:
    """Return the cost of training and its validations after each of the steps, by axis."""
    rows = [row for row in read_lines(job.folder / "timing.jsonl") if "spent" in row]
    spent = {int(row["step"]): row["spent"] for row in rows}
    end = spent[max(spent)]
    return {
        step: {axis: known(_total(end, axis) - _total(spent.get(step), axis)) for axis in AXES}
        for step in steps
    }


def _total(spent: Mapping[str, Mapping[str, float | None]] | None, axis: str) -> float:
    """Sum the cost up to a checkpoint, before any new task; NaN if a part was not measured."""
    if spent is None:
        return math.nan
    parts = [(spent.get(phase) or {}).get(axis, 0.0) for phase in ONCE]
    return sum(math.nan if part is None else float(part) for part in parts)
