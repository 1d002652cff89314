"""Running statistics in a training step: their movement, in the place of their gradient.

The update subtracts it, so that they too are averaged over tasks, whichever executor runs."""

from __future__ import annotations

from metalearn.padding import padded
from metalearn.scopes.running_statistics import Scope
from metalearn.types import Batch, Grads, Learner, Meta, Params


def params_of(meta: Meta) -> Params:
    """The learner's parameters in a meta: it is their flat dict, or holds it as `params`."""
    inside = meta.get("params")
    params: Params = inside if isinstance(inside, dict) else meta
    return params


def with_movement(grads: Grads, movement: Params) -> Grads:
    """`grads` of a meta with the movement of its running statistics."""
    params_of(grads).update(movement)
    return grads


def movement_by(learner: Learner, params: Params, batch: Batch) -> Params:
    """Old minus moved running statistics, by a pass over `batch`; {} where there are none.

    For steps whose passes all lie in an inner loop, which moves none."""
    if learner.normalisation != "running":
        return {}
    with padded(batch.weight):
        new = learner.stats(params, batch.x)
    return {name: params[name] - new[name] for name in params if new[name] is not params[name]}


def movement_of(scope: Scope, meta: Meta) -> Params:
    """Old minus moved running statistics, by the passes of a training step; {} without any."""
    return scope.differences(params_of(meta))
