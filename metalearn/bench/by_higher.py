"""higher: a patched module and a differentiable optimizer, one task after the other."""

from __future__ import annotations

import torch

from metalearn.bench.engine import Engine, LeftOut, package
from metalearn.bench.plain import criterion, each_task, module
from metalearn.bench.problem import Problem
from metalearn.bench.torch_loop import engine_of
from metalearn.types import Episode


def engine(problem: Problem) -> Engine:
    """As in higher's own MAML example: innerloop_ctx without a copy of the start, losses divided by
    T.
    """
    higher, work = package("higher"), problem.workload
    if work.family != "maml":
        raise LeftOut("higher patches inner loops, and ProtoNet has none")
    model = module(problem)
    inner = torch.optim.SGD(model.parameters(), lr=work.inner_lr)
    parameters = list(model.parameters())

    def backward(episodes: Episode) -> None:
        for sx, sy, qx, qy in each_task(episodes):
            with higher.innerloop_ctx(
                model, inner, copy_initial_weights=False, track_higher_grads=not work.first_order
            ) as (live, rule):
                for _ in range(work.inner_steps):
                    rule.step(criterion(work, live(sx), sy))
                loss = criterion(work, live(qx), qy) / work.tasks
                if not work.first_order:
                    loss.backward()
                    continue
                # Without its graph the end of the path does not know the start: first-order MAML is
                # the gradient at the end, put onto the start by hand.
                for parameter, grad in zip(
                    parameters, torch.autograd.grad(loss, list(live.parameters()))
                ):
                    parameter.grad = grad if parameter.grad is None else parameter.grad + grad

    return engine_of(problem, model, backward)
