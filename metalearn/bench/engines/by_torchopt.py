"""TorchOpt: its MetaSGD around a module or its functional sgd, whichever is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metalearn.bench.engines import imaml
from metalearn.bench.engines.engine import Engine, LeftOut, package
from metalearn.bench.engines.plain import criterion, each_task, module
from metalearn.bench.engines.torch_loop import make_engine
from metalearn.bench.problem import Problem
from metalearn.types import Episode


def engines(problem: Problem) -> list[Engine]:
    """Return one engine per form that may be the fastest here.

    vmap is faster for the MLP, and on a GPU. For convolutions on a CPU it is no faster than a
    loop (measured: 1.0 to 1.4 times the time) and holds all tasks in memory at once. MetaSGD has no
    first-order mode; the functional rule has."""
    torchopt = package("torchopt")
    work = problem.workload
    if work.family == "imaml":
        return [imaml.engine(problem)]
    if work.family != "maml":
        raise LeftOut(
            "torchopt differentiates through optimizers: it is timed on MAML and iMAML alone"
        )
    loop = _functional if work.first_order else _meta_sgd
    forms = [loop(problem, torchopt, module(problem))]
    if work.model == "mlp" or problem.device != "cpu":
        forms.append(_vmapped(problem, torchopt, module(problem)))
    return forms


def _meta_sgd(problem: Problem, torchopt: Any, model: nn.Module) -> Engine:
    """As in TorchOpt's own MAML example: states by reference, restored after every task."""
    work = problem.workload
    inner = torchopt.MetaSGD(model, lr=work.inner_lr)
    model_start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
    inner_start = torchopt.extract_state_dict(inner, by="reference")

    def backward(episodes: Episode) -> None:
        for sx, sy, qx, qy in each_task(episodes):
            for _ in range(work.inner_steps):
                inner.step(criterion(work, model(sx), sy))
            (criterion(work, model(qx), qy) / work.tasks).backward()
            torchopt.recover_state_dict(model, model_start)
            torchopt.recover_state_dict(inner, inner_start)

    return make_engine(problem, model, backward, "MetaSGD")


def _functional(problem: Problem, torchopt: Any, model: nn.Module) -> Engine:
    """Its optax-like sgd on the gradients of torch.autograd, one task after the other."""
    work, rule = problem.workload, torchopt.sgd(problem.workload.inner_lr)

    def backward(episodes: Episode) -> None:
        start: dict[str, Tensor] = dict(model.named_parameters())
        for sx, sy, qx, qy in each_task(episodes):
            params, state = start, rule.init(start)
            for _ in range(work.inner_steps):
                loss = criterion(work, functional_call(model, params, (sx,)), sy)
                grads = torch.autograd.grad(
                    loss, list(params.values()), create_graph=not work.first_order
                )
                updates, state = rule.update(
                    dict(zip(params, grads)), state, params=params, inplace=False
                )
                params = torchopt.apply_updates(params, updates, inplace=False)
            (criterion(work, functional_call(model, params, (qx,)), qy) / work.tasks).backward()

    return make_engine(problem, model, backward, "functional")


def _vmapped(problem: Problem, torchopt: Any, model: nn.Module) -> Engine:
    """Its optax-like sgd inside torch.func.grad, all tasks under vmap."""
    work, rule = problem.workload, torchopt.sgd(problem.workload.inner_lr)

    def loss(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return criterion(work, functional_call(model, params, (x,)), y)

    def task(params: Any, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        state = rule.init(params)
        for _ in range(work.inner_steps):
            grads = grad(loss)(params, sx, sy)
            if work.first_order:
                grads = {name: value.detach() for name, value in grads.items()}
            updates, state = rule.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return loss(params, qx, qy)

    def backward(episodes: Episode) -> None:
        params = {name: value.detach() for name, value in model.named_parameters()}
        parts = (*episodes.support[:2], *episodes.query[:2])
        grads = vmap(grad(task), (None, 0, 0, 0, 0))(params, *parts)
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name].mean(0)

    return make_engine(problem, model, backward, "functional vmap")
