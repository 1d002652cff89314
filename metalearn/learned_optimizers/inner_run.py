"""One inner problem as pure functions of theta: how it begins, and a window of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metalearn import rng
from metalearn.inner.adapt import adapt
from metalearn.learned_optimizers.learned import LearnedRule, Theta, carried, update_of
from metalearn.losses import criterion
from metalearn.tree import leaves, trainable, tree_map
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Params, State


class Problem(NamedTuple):
    """What one inner run learns, and for how long: tensors alone, so that it can lie in a lane."""

    support: Batch  # x [B, *X]
    query: Batch  # x [M, *X]
    key: Key  # []: of the start, the minibatches and the scales
    horizon: Tensor  # [] steps in all


class Inner(NamedTuple):
    """Where an inner run stands."""

    params: Params  # divided by the problem's scales
    state: State  # of the rule
    step: Tensor  # [] steps made
    first: Tensor  # [] the outer loss before the first step: what divergence is measured by


class Run(NamedTuple):
    """An inner run as functions of theta; what estimators of the outer gradient are made of."""

    begin: Callable[[Theta, Problem], Inner]
    window: Callable[
        [Theta, Inner, Problem], tuple[Inner, Tensor, Tensor]
    ]  # -> (after, outer loss [], diverged [])


class Objective(NamedTuple):
    """One task as a problem of optimization: pure functions of one task's data."""

    init: Callable[[Problem], Params]
    units: Callable[
        [Params, Problem], Params
    ]  # the factor of every tensor, as fixed parameters; often none
    data: Callable[[Problem, Tensor], Batch]  # what the step of a number [] learns from
    loss: Callable[
        [Params, Batch], Tensor
    ]  # (params and units, data): closes over nothing of one task
    held_out: Callable[[Params, Problem], Tensor]  # (params and units, problem): on the query set


FLOOR = 1e-3  # of the start's loss, below which a lower loss hardly counts under `log`
UNITS = "units."  # prefix of the factors among the fixed parameters


def objective(
    learner: Learner, spec: EpisodeSpec, batch: int | None = None, rescale: float = 1.0
) -> Objective:
    """The objective of learning a task with `learner`: its start and its loss, on the support set
    or minibatches of it.

    `batch` examples are drawn with replacement for every step; None: all of them. With `rescale` r
    > 1 the loss is that of s * params, s one number a tensor, log-uniform between 1/r and r: the
    same function in other units (`learned_optimization`'s ReparamWeights), so that a rule cannot
    lean on the size of parameters and gradients."""
    loss_of = criterion(spec)

    def units(params: Params, problem: Problem) -> Params:
        if rescale == 1.0:
            return {}
        reach, key = math.log(rescale), rng.fold_in(problem.key, "units")
        return {
            UNITS + name: rng.uniform(
                rng.fold_in(key, name), (), -reach, reach, dtype=value.dtype
            ).exp()
            for name, value in trainable(params)[0].items()
        }

    def init(problem: Problem) -> Params:
        params = learner.init(rng.fold_in(problem.key, "start"))
        factors = units(params, problem)
        return {name: value / factors.get(UNITS + name, 1.0) for name, value in params.items()}

    def natural(params: Params) -> Params:
        own = {name: value for name, value in params.items() if not name.startswith(UNITS)}
        return {name: value * params.get(UNITS + name, 1.0) for name, value in own.items()}

    def loss(params: Params, data: Batch) -> Tensor:
        return loss_of(learner.apply(natural(params), data.x), data.y)

    def held_out(params: Params, problem: Problem) -> Tensor:
        said = learner.apply(natural(params), problem.query.x, context=problem.support.x)
        return loss_of(said, problem.query.y)

    def data(problem: Problem, step: Tensor) -> Batch:
        return minibatch(problem.support, rng.fold_in(problem.key, "batch"), step, batch)

    return Objective(init, units, data, loss, held_out)


def minibatch(data: Batch, key: Key, step: Tensor, size: int | None) -> Batch:
    """`size` examples for one step, drawn with replacement: [B, *X] -> [size, *X]; all of them
    where size is None.
    """
    if size is None:
        return data
    rows = rng.integers(rng.fold_in(key, step.to(torch.int64)), (size,), data.x.shape[0])
    return Batch(data.x[rows], data.y[rows])


def inner_run(
    target: Objective,
    learned: LearnedRule,
    unroll: int,
    *,
    on: Literal["support", "query"] = "support",
    at: Literal["all", "late", "last"] = "all",
    of: Literal["loss", "root", "log"] = "loss",
    bound: float = 100.0,
    first_order: bool = True,
) -> Run:
    """Windows of `unroll` steps under `learned`; their outer loss is the mean over points after a
    step, or the last. With `late` a point weighs as much as its number among the run's steps, times
    2.

    The loss of a point is that of the next step's minibatch (`support`), as in Andrychowicz et al.
    2016, equation 3, or of the query set; of `log` its logarithm is taken in units of the start's:
    tasks of all sizes then count alike, and late steps as much as early ones (FLOOR keeps solved
    tasks from counting more); `root` lies between. A loss that is not finite, or above `bound`
    times that of the start, counts as that many, and `diverged` [] is the share of such points.
    `first_order`: gradients of the objective are constants to theta."""

    update = update_of(learned)

    def loss(params: Params, data: Batch, step: int) -> Tensor:
        del step  # the data alone tell one step from another
        return target.loss(params, data)

    def outer_at(params: Params, problem: Problem, step: Tensor) -> Tensor:
        return (
            target.held_out(params, problem)
            if on == "query"
            else target.loss(params, target.data(problem, step))
        )

    def begin(theta: Theta, problem: Problem) -> Inner:
        params = target.init(problem)
        zero = torch.zeros_like(problem.horizon)
        state = learned.rule(theta, problem.horizon).init(trainable(params)[0])
        return Inner(
            params,
            state,
            zero,
            outer_at({**params, **target.units(params, problem)}, problem, zero),
        )

    def window(theta: Theta, inner: Inner, problem: Problem) -> tuple[Inner, Tensor, Tensor]:
        rule = carried(learned, theta, problem.horizon)._replace(update=update)
        units = target.units(inner.params, problem)
        keep = range(unroll + 1) if on == "query" and at != "last" else (unroll,)
        path = adapt(
            loss,
            inner.params,
            rule,
            lambda step: target.data(problem, inner.step + step),
            unroll,
            state={"theta": theta, "state": inner.state},
            keep=keep,
            fixed=units,
            first_order=first_order,
            step_invariant=True,
        )
        losses = outer_at({**path.points[-1], **units}, problem, inner.step + unroll).unsqueeze(0)
        if at != "last" and on == "query":
            before = [target.held_out({**point, **units}, problem) for point in path.points[1:-1]]
            losses = torch.cat([*(value.unsqueeze(0) for value in before), losses])
        elif at != "last":
            losses = torch.cat([path.losses[1:], losses])
        losses, diverged = bounded(losses, bound * inner.first)
        losses = weighed(losses, inner, problem, of, at)
        after = Inner(path.points[-1], path.state["state"], inner.step + unroll, inner.first)
        return after, losses.mean(), diverged

    return Run(begin, window)


def weighed(losses: Tensor, inner: Inner, problem: Problem, of: str, at: str) -> Tensor:
    """The losses [K] of a window as `of` and `at` say (inner_run)."""
    if of == "log":
        losses = (losses / inner.first + FLOOR).log()
    if of == "root":
        losses = (losses / inner.first + FLOOR**2).sqrt()
    if at == "late":
        number = torch.arange(1.0, losses.shape[0] + 1, dtype=losses.dtype, device=losses.device)
        losses = losses * (2 / problem.horizon) * (inner.step + number)
    return losses


def bounded(losses: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """(losses, at most `most` and finite; the share [] that was neither): a diverging run stays a
    number.
    """
    good = losses <= most  # false for NaN too
    return torch.where(good, losses, most.detach()), 1 - good.to(losses.dtype).mean().detach()


def steady(grads: Theta, clip: float | None) -> tuple[Theta, dict[str, Tensor]]:
    """One task's outer gradient made safe: zero where it, or its length, is not finite, then at
    most `clip` long.

    Metrics: `grad_norm` before clipping, 0 where it is not finite, and `grad_not_finite`, 1 there.
    """
    squares = torch.stack([grad.square().sum() for grad in leaves(grads)]).sum()
    fine = squares.isfinite()
    grads = tree_map(lambda grad: torch.where(fine, grad, torch.zeros_like(grad)), grads)
    size = torch.where(fine, squares, torch.zeros_like(squares)).sqrt()
    if clip is not None:
        factor = clip / size.clamp(min=clip)
        grads = tree_map(lambda grad: factor * grad, grads)
    return grads, {"grad_norm": size.detach(), "grad_not_finite": 1 - fine.to(size.dtype)}
