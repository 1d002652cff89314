"""A second test of a transductive method, without information shared among queries.

Under `query_batch` the queries of a task are normalised with statistics of all of them, so that a
single query could not be predicted in that way. Here the same trained meta learns and predicts the
same test tasks under `support`: statistics of the support set alone (the current batch while it
learns, which is the support set)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from metalearn.config.build import rebuild
from metalearn.run.extra_tests.headline import headline_test
from metalearn.run.job import Job
from metalearn.types import Meta

POLICY = "support"


class Inductive(NamedTuple):
    """The field `inductive` of result.json, and the scores behind it."""

    record: dict[str, Any] | None  # None: the method is already inductive
    scores: Any = None  # [E] float32, on the host


def inductive_test(job: Job, metas: Sequence[Meta]) -> Inductive:
    """Return the headline value of `metas` under inductive normalisation."""
    traits = job.parts.test_method.traits
    if not traits.transductive:
        return Inductive(None)
    if traits.host_side:
        return Inductive({"why": "the search on every new task would have to be repeated"})
    if "norm" not in type(job.experiment.model).model_fields:
        return Inductive({"why": "the model has no field `norm`"})
    model = job.experiment.model.model_copy(update={"norm": POLICY})
    experiment = job.experiment.replace(model=model)
    job = replace(job, experiment=experiment, parts=rebuild(job.parts, experiment))
    record, scores = headline_test(job, metas)
    return Inductive({"normalisation": POLICY, **record}, scores.numpy())
