"""learn2learn: clone, adapt, backward, one task after the other; ProtoNet by its
PrototypicalClassifier.
"""

from __future__ import annotations

import torch
from torch import nn

from metalearn.bench.engine import Engine, package
from metalearn.bench.plain import criterion, each_task, module
from metalearn.bench.problem import Problem
from metalearn.bench.torch_loop import engine_of
from metalearn.types import Episode


def engine(problem: Problem) -> Engine:
    """As in learn2learn's own examples: losses divided by T, one Adam over all tasks."""
    l2l, work = package("learn2learn"), problem.workload
    model = module(problem)
    maml = l2l.algorithms.MAML(model, lr=work.inner_lr, first_order=work.first_order)

    def adapt(episodes: Episode) -> None:
        for sx, sy, qx, qy in each_task(episodes):
            learner = maml.clone()
            for _ in range(work.inner_steps):
                learner.adapt(criterion(work, learner(sx), sy))
            (criterion(work, learner(qx), qy) / work.tasks).backward()

    def compare(episodes: Episode) -> None:
        classifier = l2l.nn.PrototypicalClassifier()
        for sx, sy, qx, qy in each_task(episodes):
            classifier.fit_(_features(model, sx), sy)
            (criterion(work, classifier(_features(model, qx)), qy) / work.tasks).backward()

    return engine_of(problem, model, compare if work.family == "proto_net" else adapt)


def _features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.features(x)  # type: ignore[operator]
    return found
