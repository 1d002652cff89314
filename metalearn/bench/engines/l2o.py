"""Unrolled training of a learned optimizer as a workload, and plain autograd in torch.

One meta-step: sample T inner problems and their initializations, 100 steps of a coordinate-wise
LSTM (2 x 20) on each, the mean loss after a step, its gradient by back-propagation through all
steps (gradients of the inner loss are constants, as in 2016), one step of Adam."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.bench.engines.engine import Engine, copy_grad
from metalearn.bench.problem import OUTER_LR, READY, Problem, synchronise
from metalearn.learned_optimizers import LSTM, Constant, LearnOptimizer
from metalearn.losses import criterion
from metalearn.models import MLP, Own
from metalearn.rng import fold_in
from metalearn.tasks import Digits, Quadratics
from metalearn.types import Episode, Learner, Method, Params

PREPROCESS, SCALE = 5.0, 0.1  # of the rule: log-sign features, and the factor of its output


class InnerProblems(NamedTuple):
    """Inner problems as plain tensors, for engines without a sampler."""

    x: Tensor  # [T, B, *X]
    y: Tensor  # [T, B] or [T, B, 1]
    starts: Params  # [T, ...]


class LearnedProblem(Problem):
    """The workloads l2o_quadratics and l2o_mlp.

    10 dimensions; 64-20-10 with sigmoid on 50 real digits."""

    @cached_property
    def source(self) -> Any:
        if self.workload.name == "l2o_quadratics":
            return Quadratics().build(device=self.device)
        return Digits(ways=self.workload.ways, shots=self.workload.shots, queries=0).build(
            device=self.device
        )

    @cached_property
    def learner(self) -> Learner:
        if self.source.spec.objective:
            return Own().build(self.source.spec)
        return MLP(sizes=(20,), activation="sigmoid").build(self.source.spec)

    @cached_property
    def method(self) -> Method:
        steps = self.workload.inner_steps
        rule = LSTM(preprocess=PREPROCESS, scale=SCALE)
        kind = LearnOptimizer(rule=rule, unroll=steps, horizon=Constant(steps=steps))
        return kind.build(self.learner, self.source.spec)

    @cached_property
    def start(self) -> Params:
        """The initial theta of every engine."""
        return dict(self.method.init(fold_in(0, "bench", "init")).meta)

    @cached_property
    def ready_problems(self) -> list[InnerProblems]:
        return [self.plain(self.episodes(number)) for number in range(READY)]

    def plain(self, episodes: Episode) -> InnerProblems:
        """Return the episodes with the initializations that our own method samples."""
        learner = self.learner
        starts = torch.func.vmap(lambda key: learner.init(fold_in(key, "start")))(
            episodes.info["key"]
        )
        return InnerProblems(episodes.support.x, episodes.support.y, starts)


def unrolled(problem: LearnedProblem, theta: Params, x: Tensor, y: Tensor, start: Params) -> Tensor:
    """Return the mean over steps of one task's loss: a plain loop over torch.autograd.grad."""
    steps, component = problem.workload.inner_steps, LSTM(preprocess=PREPROCESS, scale=SCALE)
    rule, loss_of = component.build(x.dtype).rule(theta, steps), criterion(problem.source.spec)
    params = {name: value.requires_grad_() for name, value in start.items()}
    state, total = rule.init(params), x.new_zeros(())
    for step in range(steps + 1):
        loss = loss_of(problem.learner.apply(params, x), y)
        total = total + loss if step else total
        if step == steps:
            break
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        updates, state = rule.update(dict(zip(params, grads, strict=True)), state, params, loss)
        params = {name: value + updates[name] for name, value in params.items()}
    return total / steps


def add_gradients(problem: LearnedProblem, theta: Params, problems: InnerProblems) -> None:
    """Add the gradient of the mean over tasks to the .grad of theta's leaves, task after task."""
    tasks = problems.x.shape[0]
    for task in range(tasks):
        start = {name: value[task].detach().clone() for name, value in problems.starts.items()}
        (unrolled(problem, theta, problems.x[task], problems.y[task], start) / tasks).backward()


def reference(problem: LearnedProblem, episodes: Episode) -> Params:
    """Return the same gradient in float64."""
    problems = problem.plain(episodes)
    theta = {name: value.double().requires_grad_() for name, value in problem.start.items()}
    y = problems.y.double() if problems.y.is_floating_point() else problems.y
    starts = {name: value.double() for name, value in problems.starts.items()}
    add_gradients(problem, theta, InnerProblems(problems.x.double(), y, starts))
    return {name: copy_grad(value) for name, value in theta.items()}


def engine(problem: LearnedProblem) -> Engine:
    """Return plain autograd over the tasks, one after another, and torch's Adam."""
    theta = {name: value.clone().requires_grad_() for name, value in problem.start.items()}
    adam, number, ready = torch.optim.Adam(theta.values(), lr=OUTER_LR), 0, problem.ready_problems

    def step() -> None:
        nonlocal number
        number += 1
        adam.zero_grad()
        add_gradients(problem, theta, ready[number % len(ready)])
        adam.step()

    def gradient(episodes: Episode) -> Params:
        fresh = {name: value.clone().requires_grad_() for name, value in problem.start.items()}
        add_gradients(problem, fresh, problem.plain(episodes))
        return {name: copy_grad(value) for name, value in fresh.items()}

    return Engine(step, gradient, lambda: synchronise(problem.device), "autograd, a task at a time")
