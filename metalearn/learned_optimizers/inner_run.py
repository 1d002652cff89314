"""One inner problem as pure functions of theta: initialization, and windows of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metalearn import rng
from metalearn.inner.adapt import adapt
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    Theta,
    bind_theta,
    make_bound_update,
)
from metalearn.losses import criterion
from metalearn.tree import leaves, trainable, tree_map
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Params, Path, State

FLOOR = 1e-3  # of the initial loss, below which a lower loss hardly counts under `log`
UNITS = "units."  # prefix of the factors among the fixed parameters


class Problem(NamedTuple):
    """Data and length of one inner run: only tensors, so that `lanes` can store it."""

    support: Batch  # x [B, *X]
    query: Batch  # x [M, *X]
    key: Key  # [], of the initial parameters, the minibatches and the scales
    horizon: Tensor  # [] total number of steps


class Inner(NamedTuple):
    """The state of an inner run."""

    params: Params  # divided by the problem's scales
    state: State  # of the rule
    step: Tensor  # [] steps made
    first: Tensor  # [] the outer loss before the first step; divergence is relative to it


class Run(NamedTuple):
    """An inner run as functions of theta, for estimators of the outer gradient."""

    begin: Callable[[Theta, Problem], Inner]
    # -> (after, outer loss [], diverged [])
    window: Callable[[Theta, Inner, Problem], tuple[Inner, Tensor, Tensor]]


class Optimizee(NamedTuple):
    """One task as an optimization problem: pure functions of one task's data."""

    init: Callable[[Problem], Params]
    # The scale of every tensor, as fixed parameters; often none.
    units: Callable[[Params, Problem], Params]
    data: Callable[[Problem, Tensor], Batch]  # training data of a step []
    # (params and units, data); captures nothing of one task
    loss: Callable[[Params, Batch], Tensor]
    held_out: Callable[[Params, Problem], Tensor]  # (params and units, problem), on the query set


class OuterLoss(NamedTuple):
    """How the losses of a window make its outer loss.

    `on`: the loss of a point is that of the next step's minibatch (`support`), as in Andrychowicz
    et al. 2016, equation 3, or of the query set. `at`: the mean over the points after a step, the
    same weighted by 2 * step / horizon (`late`), or the last point. `of`: with `log` the logarithm
    of the loss relative to the initial one, so that tasks with losses of all magnitudes have equal
    weight, and late steps the same weight as early ones (FLOOR limits the weight of solved tasks);
    `root` is in between. A loss that is not finite, or above `bound` times the initial one, is
    replaced by that bound."""

    on: Literal["support", "query"] = "support"
    at: Literal["all", "late", "last"] = "all"
    of: Literal["loss", "root", "log"] = "loss"
    bound: float = 100.0

    @property
    def needs_points(self) -> bool:
        """Return whether the parameters after every step are needed, not only their losses."""
        return self.on == "query" and self.at != "last"


def optimizee(
    learner: Learner, spec: EpisodeSpec, batch: int | None = None, rescale: float = 1.0
) -> Optimizee:
    """Return the problem of learning a task with `learner`, on the support set or minibatches.

    `batch` examples are sampled with replacement for every step; None: all of them. With `rescale`
    r > 1 the loss is that of s * params, with one log-uniform s in [1/r, r] for each tensor: the
    same function in other units (`learned_optimization`'s ReparamWeights), so that a rule cannot
    rely on the magnitude of parameters and gradients."""
    loss_of = criterion(spec)

    def units(params: Params, problem: Problem) -> Params:
        return _unit_factors(params, problem, rescale)

    def init(problem: Problem) -> Params:
        params = learner.init(rng.fold_in(problem.key, "start"))
        factors = units(params, problem)
        return {name: value / factors.get(UNITS + name, 1.0) for name, value in params.items()}

    def loss(params: Params, data: Batch) -> Tensor:
        return loss_of(learner.apply(_apply_units(params), data.x), data.y)

    def held_out(params: Params, problem: Problem) -> Tensor:
        query, context = problem.query, problem.support.x
        return loss_of(learner.apply(_apply_units(params), query.x, context=context), query.y)

    def data(problem: Problem, step: Tensor) -> Batch:
        return minibatch(problem.support, rng.fold_in(problem.key, "batch"), step, batch)

    return Optimizee(init, units, data, loss, held_out)


def _unit_factors(params: Params, problem: Problem, rescale: float) -> Params:
    """Return a log-uniform factor in [1 / rescale, rescale] per trainable tensor, under UNITS."""
    if rescale == 1.0:
        return {}
    log_rescale, key = math.log(rescale), rng.fold_in(problem.key, "units")

    def factor(name: str, value: Tensor) -> Tensor:
        return rng.uniform(
            rng.fold_in(key, name), (), -log_rescale, log_rescale, dtype=value.dtype
        ).exp()

    return {UNITS + name: factor(name, value) for name, value in trainable(params)[0].items()}


def _apply_units(params: Params) -> Params:
    """Return the parameters of the learner, each multiplied by its factor."""
    return {
        name: value * params.get(UNITS + name, 1.0)
        for name, value in params.items()
        if not name.startswith(UNITS)
    }


def minibatch(data: Batch, key: Key, step: Tensor, size: int | None) -> Batch:
    """Sample `size` examples of a step with replacement: [B, *X] -> [size, *X]; None: all."""
    if size is None:
        return data
    indices = rng.integers(rng.fold_in(key, step.to(torch.int64)), (size,), data.x.shape[0])
    return Batch(data.x[indices], data.y[indices])


def inner_run(
    target: Optimizee, learned: LearnedRule, unroll: int, outer: OuterLoss, first_order: bool = True
) -> Run:
    """Return a Run with windows of `unroll` steps of `learned`.

    `diverged` [] is the fraction of bounded losses. With `first_order`, gradients of the objective
    are constants with respect to theta."""
    update = make_bound_update(learned)

    def loss(params: Params, data: Batch, step: int) -> Tensor:
        del step  # steps differ only in their data
        return target.loss(params, data)

    def window(theta: Theta, inner: Inner, problem: Problem) -> tuple[Inner, Tensor, Tensor]:
        rule = bind_theta(learned, theta, problem.horizon)._replace(update=update)
        units = target.units(inner.params, problem)
        path = adapt(
            loss,
            inner.params,
            rule,
            lambda step: target.data(problem, inner.step + step),
            unroll,
            state={"theta": theta, "state": inner.state},
            keep=range(unroll + 1) if outer.needs_points else (unroll,),
            fixed=units,
            first_order=first_order,
            step_invariant=True,
        )
        end_step = inner.step + unroll
        losses = _window_losses(path, target, outer, units, problem, end_step)
        losses, diverged = _clip_losses(losses, outer.bound * inner.first)
        losses = _transform_losses(losses, inner, problem, outer)
        next_inner = Inner(path.points[-1], path.state["state"], end_step, inner.first)
        return next_inner, losses.mean(), diverged

    return Run(partial(_begin, target, learned, outer), window)


def _begin(
    target: Optimizee, learned: LearnedRule, outer: OuterLoss, theta: Theta, problem: Problem
) -> Inner:
    """Return the state of an inner run before its first step."""
    params = target.init(problem)
    zero = torch.zeros_like(problem.horizon)
    state = learned.rule(theta, problem.horizon).init(trainable(params)[0])
    params_and_units = {**params, **target.units(params, problem)}
    return Inner(params, state, zero, _outer_loss(target, outer, params_and_units, problem, zero))


def _outer_loss(
    target: Optimizee, outer: OuterLoss, params: Params, problem: Problem, step: Tensor
) -> Tensor:
    """Return the outer loss [] after `step` steps; `params` include the units."""
    if outer.on == "query":
        return target.held_out(params, problem)
    return target.loss(params, target.data(problem, step))


def _window_losses(
    path: Path,
    target: Optimizee,
    outer: OuterLoss,
    units: Params,
    problem: Problem,
    end_step: Tensor,
) -> Tensor:
    """Return the outer losses [K] after the steps of a window, or only after the last one."""
    last = _outer_loss(target, outer, {**path.points[-1], **units}, problem, end_step).unsqueeze(0)
    if outer.needs_points:
        earlier = [target.held_out({**point, **units}, problem) for point in path.points[1:-1]]
        return torch.cat([*(value.unsqueeze(0) for value in earlier), last])
    return last if outer.at == "last" else torch.cat([path.losses[1:], last])


def _clip_losses(losses: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Return (losses, with larger or non-finite ones replaced by `bound`; their fraction [])."""
    is_bounded = losses <= bound  # false for NaN too
    bounded = torch.where(is_bounded, losses, bound.detach())
    return bounded, 1 - is_bounded.to(losses.dtype).mean().detach()


def _transform_losses(losses: Tensor, inner: Inner, problem: Problem, outer: OuterLoss) -> Tensor:
    """Return the losses [K] of a window, transformed by `of` and weighted by `at`."""
    if outer.of == "log":
        losses = (losses / inner.first + FLOOR).log()
    if outer.of == "root":
        losses = (losses / inner.first + FLOOR**2).sqrt()
    if outer.at == "late":
        offsets = torch.arange(1.0, losses.shape[0] + 1, dtype=losses.dtype, device=losses.device)
        losses = losses * (2 / problem.horizon) * (inner.step + offsets)
    return losses


def clip_or_zero(grads: Theta, clip: float | None) -> tuple[Theta, dict[str, Tensor]]:
    """Clip the outer gradient of a task to norm `clip`; it becomes zero if it is not finite.

    Returns metrics, too: `grad_norm` before clipping, 0 if it is not finite, and `grad_not_finite`,
    which is 1 in that case."""
    squares = torch.stack([grad.square().sum() for grad in leaves(grads)]).sum()
    is_finite = squares.isfinite()
    grads = tree_map(lambda grad: torch.where(is_finite, grad, torch.zeros_like(grad)), grads)
    norm = torch.where(is_finite, squares, torch.zeros_like(squares)).sqrt()
    if clip is not None:
        factor = clip / norm.clamp(min=clip)
        grads = tree_map(lambda grad: factor * grad, grads)
    return grads, {"grad_norm": norm.detach(), "grad_not_finite": 1 - is_finite.to(norm.dtype)}
