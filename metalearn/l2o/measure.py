"""Losses of one update rule on many problems, at chosen steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.evaluate.flops import Flops, UnknownFlops, cached_count
from metalearn.inner.adapt import adapt
from metalearn.learned_optimizers.inner_run import Optimizee, Problem
from metalearn.rng import fold_in
from metalearn.tree import take, vmap
from metalearn.types import Batch, Key, Params, TaskSource, UpdateRule

Rule = Callable[[Any], UpdateRule]  # from what vmap maps over besides tasks, such as a rate
TIMED = 20  # steps of a timing


class Losses(NamedTuple):
    """Losses at the points of a run: [..., T, P]; training loss is on the whole support set."""

    train: Tensor
    held_out: Tensor
    path: Tensor  # [..., T, S] before every step, on its minibatch


def problems(
    source: TaskSource, key: Key, tasks: int, start: int, horizon: int, inner_seed: int
) -> Problem:
    """Return tasks start .. start + T - 1 of `key` [T].

    `inner_seed` selects initialization and order of data on the same tasks."""
    episodes = source.sample(key, tasks, start)
    keys = fold_in(episodes.info["key"], "inner", inner_seed)
    length = torch.full((tasks,), float(horizon), dtype=source.spec.dtype, device=keys.device)
    return Problem(episodes.support, episodes.query, keys, length)


def run_rule(
    target: Optimizee, rule: UpdateRule, problem: Problem, points: Sequence[int]
) -> Losses:
    """Run a rule on one task: [P]."""
    params = target.init(problem)
    units = target.units(params, problem)

    def loss(params: Params, data: Batch, step: int) -> Tensor:
        return target.loss(params, data)

    def data(step: int) -> Batch:
        return target.data(problem, torch.full_like(problem.horizon, step))

    path = adapt(loss, params, rule, data, points[-1], keep=points, fixed=units)
    point_params = [{**point, **units} for point in path.points]
    train = torch.stack([target.loss(point_param, problem.support) for point_param in point_params])
    empty = problem.query.x.shape[0] == 0
    if empty:
        held_out = torch.full_like(train, torch.nan)
    else:
        held_out = torch.stack(
            [target.held_out(point_param, problem) for point_param in point_params]
        )
    return Losses(train.detach(), held_out.detach(), path.losses.detach())


def over_tasks(
    target: Optimizee, rule: UpdateRule, task_problems: Problem, points: Sequence[int]
) -> Losses:
    """Run a rule on every task: [T, P]."""
    losses: Losses = vmap(lambda problem: run_rule(target, rule, problem, points))(task_problems)
    return losses


def over_rates(
    target: Optimizee, make: Rule, rates: Tensor, task_problems: Problem, points: Sequence[int]
) -> Losses:
    """Run every rate on every task: [L, T, P]."""

    def run_one(rate: Tensor, problem: Problem) -> Losses:
        return run_rule(target, make(rate), problem, points)

    tasks = vmap(run_one, in_dims=(None, 0))
    losses: Losses = vmap(tasks, in_dims=(0, None))(rates, task_problems)
    return losses


class Overhead(NamedTuple):
    """What one step costs on one task, the gradient of the objective included."""

    seconds: float  # of a step of all tasks at once, divided by the number of tasks
    flops: int | None  # products and elementwise work; None if they do not follow from shapes


def overhead(target: Optimizee, rule: UpdateRule, task_problems: Problem) -> Overhead:
    """Return seconds of an eager step, the least of three runs of TIMED steps, and its FLOPs.

    FLOPs are those of the second of two steps."""
    tasks, times = task_problems.key.shape[0], []
    over_tasks(target, rule, task_problems, (1,))
    for _ in range(3):
        start = time.perf_counter()
        over_tasks(target, rule, task_problems, (TIMED,))
        times.append(time.perf_counter() - start)
    first_problem = take(task_problems, slice(0, 1))

    def steps(count: int) -> Callable[[Problem], Tensor]:
        return lambda problem: over_tasks(target, rule, problem, (count,)).train

    try:
        first, second = cached_count(steps(1), first_problem), cached_count(steps(2), first_problem)
        extra = Flops(second.matrix - first.matrix, second.elementwise - first.elementwise)
    except UnknownFlops:
        return Overhead(min(times) / TIMED / tasks, None)
    return Overhead(min(times) / TIMED / tasks, extra.matrix + extra.elementwise)
