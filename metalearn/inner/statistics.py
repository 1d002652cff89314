"""Running statistics in a training step: their change takes the place of a gradient.

An update subtracts (old - new), so that they too are averaged over tasks by every executor."""

from __future__ import annotations

from metalearn.padding import padding_scope
from metalearn.scopes.running_statistics import StatsScope
from metalearn.types import Batch, Grads, Learner, Meta, Params


def params_of(meta: Meta) -> Params:
    """The learner's parameters in a meta: the meta itself, or its entry `params`."""
    entry = meta.get("params")
    params: Params = entry if isinstance(entry, dict) else meta
    return params


def add_stats_delta(grads: Grads, delta: Params) -> Grads:
    """Add old - new running statistics to the gradients of a meta, in place; returns them."""
    params_of(grads).update(delta)
    return grads


def stats_delta_of_pass(learner: Learner, params: Params, batch: Batch) -> Params:
    """Old - new running statistics of a pass over `batch`; {} if there are none.

    For steps whose passes all lie in an inner loop, which updates none."""
    if learner.normalisation != "running":
        return {}
    with padding_scope(batch.weight):
        new = learner.stats(params, batch.x)
    return {name: params[name] - new[name] for name in params if new[name] is not params[name]}


def stats_delta(scope: StatsScope, meta: Meta) -> Params:
    """Old - new running statistics of the passes of a training step; {} if there are none."""
    return scope.delta(params_of(meta))
