"""iMAML as a workload: a reference with autograd, and TorchOpt's implicit differentiation.

phi is found with S steps of descent on L_support(phi) + lambda/2 |phi - theta|^2; the outer
gradient with a fixed number of conjugate gradients (Rajeswaran et al. 2019, algorithm 1)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.algorithms import IMAML
from metalearn.algorithms.gradient.implicit import conjugate_gradients
from metalearn.bench.engines.engine import Engine, package
from metalearn.bench.engines.plain import criterion, each_task, module
from metalearn.bench.engines.torch_loop import make_engine
from metalearn.bench.problem import Problem
from metalearn.types import Episode, Method, Params

STRENGTH, CG_STEPS = 2.0, 5  # lambda, steps of conjugate gradients: the authors' Omniglot settings


class ImplicitProblem(Problem):
    """The workload imaml_5w1s."""

    @cached_property
    def method(self) -> Method:
        imaml = IMAML(
            inner_steps=self.workload.inner_steps,
            inner_lr=self.workload.inner_lr,
            strength=STRENGTH,
            cg_steps=CG_STEPS,
        )
        return imaml.build(self.learner, self.source.spec)


def penalised(
    problem: Problem, model: nn.Module, params: Params, start: Params, x: Tensor, y: Tensor
) -> Tensor:
    """Return the inner objective of one task: []."""
    loss = criterion(problem.workload, functional_call(model, params, (x,)), y)
    penalties = [(params[name] - start[name]).square().sum() for name in params]
    total: Tensor = loss + STRENGTH / 2 * torch.stack(penalties).sum()
    return total


def reference(problem: Problem, episodes: Episode) -> Params:
    """Return the meta-gradient in float64, one task after another, from torch.autograd.grad."""
    work = problem.workload
    model = module(problem).double()
    start = {name: value.detach() for name, value in model.named_parameters()}
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for sx, sy, qx, qy in each_task(episodes):
        sx, qx = sx.double(), qx.double()
        params = {name: value.clone().requires_grad_() for name, value in start.items()}
        for _ in range(work.inner_steps):
            loss = penalised(problem, model, params, start, sx, sy)
            grads = torch.autograd.grad(loss, list(params.values()))
            params = {
                name: (value - work.inner_lr * grad).detach().requires_grad_()
                for (name, value), grad in zip(params.items(), grads)
            }
        meta_grads = _implicit(problem, model, params, (sx, sy, qx, qy))
        total = {name: total[name] + meta_grads[name] / work.tasks for name in total}
    return total


def _implicit(
    problem: Problem, model: nn.Module, params: Params, data: tuple[Tensor, ...]
) -> Params:
    """Return (I + H / lambda)^-1 times the query loss gradient, both at `params` of one task."""
    sx, sy, qx, qy = data
    names, leaves = list(params), list(params.values())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return criterion(problem.workload, functional_call(model, params, (x,)), y)

    outer = torch.autograd.grad(loss(qx, qy), leaves)
    inner = torch.autograd.grad(loss(sx, sy), leaves, create_graph=True)

    def matrix(x: Params) -> Params:
        vectors = [x[name] for name in names]
        products = torch.autograd.grad(inner, leaves, vectors, retain_graph=True)
        return {name: x[name] + h / STRENGTH for name, h in zip(names, products)}

    return conjugate_gradients(matrix, dict(zip(names, outer)), CG_STEPS)


def engine(problem: Problem) -> Engine:
    """Return TorchOpt's custom_root around descent with torch.autograd, one task after another."""
    torchopt: Any = package("torchopt")
    work, model = problem.workload, module(problem)
    names = [name for name, _ in model.named_parameters()]

    def objective(params: Any, start: Any, data: Any) -> Tensor:
        phi, theta = (dict(zip(names, leaves, strict=True)) for leaves in (params, start))
        return penalised(problem, model, phi, theta, *data)

    solve = torchopt.linear_solve.solve_cg(maxiter=CG_STEPS, rtol=0.0, atol=0.0)

    @torchopt.diff.implicit.custom_root(  # type: ignore[untyped-decorator]
        torch.func.grad(objective, argnums=0), argnums=1, solve=solve
    )
    def descend(params: Any, start: Any, data: Any) -> Any:
        for _ in range(work.inner_steps):
            params = [value.detach().requires_grad_() for value in params]
            with torch.enable_grad():
                loss = objective(params, [value.detach() for value in start], data)
            grads = torch.autograd.grad(loss, params)
            params = [value - work.inner_lr * grad for value, grad in zip(params, grads)]
        return tuple(value.detach() for value in params)

    def backward(episodes: Episode) -> None:
        start = tuple(model.parameters())
        for sx, sy, qx, qy in each_task(episodes):
            phi = descend(tuple(value.detach() for value in start), start, (sx, sy))
            outputs = functional_call(model, dict(zip(names, phi)), (qx,))
            (criterion(work, outputs, qy) / work.tasks).backward()

    return make_engine(problem, model, backward, "custom_root")
