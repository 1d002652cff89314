"""learn2learn and higher: MAML one task after the other; ProtoNet with learn2learn's classifier."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from metalearn.bench.engines.engine import Engine, LeftOut, package
from metalearn.bench.engines.plain import criterion, each_task, module
from metalearn.bench.engines.torch_loop import make_engine
from metalearn.bench.problem import Problem
from metalearn.interop import INNER_LOOPS
from metalearn.types import Episode

WITHOUT = {
    "r2d2": "has no ridge regression head: plain torch is timed",
    "imaml": "has no implicit differentiation",
}


def engine(name: str, problem: Problem) -> Engine:
    """As in the packages' own examples: losses divided by T, one Adam over all tasks."""
    work, peer = problem.workload, package(name)
    if work.family in WITHOUT:
        raise LeftOut(f"{name} {WITHOUT[work.family]}")
    model = module(problem)
    if work.family == "proto_net":
        if name != "learn2learn":
            raise LeftOut(f"{name} patches inner loops, and ProtoNet has none")
        return make_engine(problem, model, partial(_prototypes, problem, model, peer.nn))
    on_head = work.family == "anil"
    adapt = INNER_LOOPS[name](
        model.head if on_head else model,  # type: ignore[arg-type]
        partial(criterion, work),
        lr=work.inner_lr,
        steps=work.inner_steps,
        first_order=work.first_order,
    )

    def backward(episodes: Episode) -> None:
        for sx, sy, qx, qy in each_task(episodes):
            if on_head:
                sx, qx = _features(model, sx), _features(model, qx)
            adapted = adapt(sx, sy)
            adapted.backward(criterion(work, adapted.network(qx), qy) / work.tasks)

    return make_engine(problem, model, backward)


def _prototypes(problem: Problem, model: nn.Module, layers: nn.Module, episodes: Episode) -> None:
    """Add the gradient of ProtoNet with PrototypicalClassifier to .grad."""
    work, classifier = problem.workload, layers.PrototypicalClassifier()  # type: ignore[operator]
    for sx, sy, qx, qy in each_task(episodes):
        classifier.fit_(_features(model, sx), sy)
        (criterion(work, classifier(_features(model, qx)), qy) / work.tasks).backward()


def _features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.features(x)  # type: ignore[operator]
    return features
