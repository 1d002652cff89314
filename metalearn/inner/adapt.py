"""The only inner loop of the project, and the loss on the support set that it descends."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import noise
from metalearn.errors import ConfigError
from metalearn.inner.one_vector import apply_rule
from metalearn.inner.recompute import checkpoint, is_checkpointing
from metalearn.inner.stepwise import is_active, loop
from metalearn.losses import Criterion, criterion
from metalearn.padding import current, padded, present_in, without_absent
from metalearn.scopes import running_statistics
from metalearn.tree import detach, trainable
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Key,
    Learner,
    Params,
    Path,
    State,
    UpdateRule,
)

PRESENT = "padding.present"  # of the fixed parameters: the classes of the task, for the loss
Loss = Callable[[Params, Batch, int], Tensor]  # -> []
Data = Batch | Callable[[int], Batch]  # a function of the step gives a minibatch


def adapt(
    loss: Loss,
    params: Params,
    rule: UpdateRule,
    batch: Data,
    steps: int,
    *,
    state: Any = None,
    keep: Collection[int] | None = None,
    fixed: Params | None = None,
    first_order: bool = False,
    step_invariant: bool = False,
) -> Path:
    """Learn one task by `steps` steps of `rule`.

        phi_{s+1} = phi_s + rule(grad loss(phi_s, batch, s))

    `batch` is the support set, or a function of the step that returns a minibatch. `keep`: the
    step indices whose parameters are returned (default: all S + 1; 0 is the initialization).
    `fixed`: further parameters that are passed to `loss` but not updated, such as a head that the
    inner loop does not adapt; they are not in the points. `first_order` treats every gradient as a
    constant in derivatives of the path. Running statistics (prefix "stats.") are passed through
    unchanged. Under `recompute.checkpointing` activations are not kept from step to step: a gradient
    then flows through `params`, `fixed`, `batch` and `state` alone, not through what `loss` and
    `rule` close over. `step_invariant` promises that `loss` ignores the step, and that neither it
    nor the update of the rule captures anything task-specific: under `stepwise.stepwise` one
    compiled step then serves for all, and gradients flow as under `checkpointing`, but not through
    `batch`. The losses [S] of the path are each evaluated before its step."""
    if steps < 0:
        raise ValueError(f"steps: {steps} is negative")
    moving, statistics = trainable(params)
    state = rule.init(moving) if state is None else state
    start = _Start(moving, state, statistics, _with_classes(fixed or {}))
    training = running_statistics.is_training()
    move = partial(_step, loss, rule, first_order, training)
    keep = range(steps + 1) if keep is None else keep
    if step_invariant and steps and is_active() and not noise.is_active():
        identity = (loss, rule.update, first_order, training)
        return _compiled_steps(identity, partial(move, 0), start, batch, steps, keep)
    return _eager_steps(move, start, batch, steps, keep)


def _with_classes(fixed: Params) -> Params:
    """The fixed parameters and the classes of the open scope, which a step hands to the loss."""
    present = current().present
    return fixed if present is None else {**fixed, PRESENT: present}


class _Start(NamedTuple):
    moving: Params
    state: State
    statistics: Params  # running statistics, part of every point
    fixed: Params


def _eager_steps(
    move: Callable[..., Any], start: _Start, batch: Data, steps: int, keep: Collection[int]
) -> Path:
    moving, state, statistics, fixed = start
    noisy, like = noise.is_active(), next(iter({**moving, **statistics}.values()))
    points: list[Params] = []
    losses: list[Tensor] = []
    for step in range(steps + 1):
        if step in keep:
            points.append({**moving, **statistics})
        if step == steps:
            break
        data = batch if isinstance(batch, Batch) else batch(step)
        given: tuple[Any, ...] = (moving, state, {**statistics, **fixed}, data)
        given = (*given, noise.next_key()) if noisy else given
        one_step = partial(move, step)
        moving, state, value = (
            checkpoint(one_step, *given) if is_checkpointing() else one_step(*given)
        )
        losses.append(value)
    return Path(points, state, torch.stack(losses) if losses else like.new_zeros(0))


def _compiled_steps(
    identity: Any,
    move: Callable[..., Any],
    start: _Start,
    batch: Data,
    steps: int,
    keep: Collection[int],
) -> Path:
    """The same path by `stepwise.loop`; steps of one `identity` share their compiled code."""
    moving, state, statistics, fixed = start
    data = [batch] if isinstance(batch, Batch) else [batch(step) for step in range(steps)]
    data = data[:1] if all(part.x is data[0].x for part in data) else data
    inside, last, state, losses = loop(
        identity, move, moving, state, {**statistics, **fixed}, data, steps, keep
    )
    ends = [moving] if 0 in keep else []
    points = [*ends, *inside, *([last] if steps in keep else [])]
    return Path([{**point, **statistics} for point in points], state, losses)


def _step(
    loss: Loss,
    rule: UpdateRule,
    first_order: bool,
    training: bool,
    step: int,
    moving: Params,
    state: State,
    constants: Params,
    data: Batch,
    key: Key | None = None,
) -> tuple[Params, State, Tensor]:
    """One step, whose second run in a backward pass, on whatever thread, is equal to the first.

    The noise of `loss` is drawn from `key`; `training` says whose statistics normalise."""
    present = constants.get(PRESENT)
    constants = {name: value for name, value in constants.items() if name != PRESENT}

    def loss_at(params: Params) -> Tensor:
        if present is None:
            return loss({**params, **constants}, data, step)
        with padded(None, present=present):
            return loss({**params, **constants}, data, step)

    with noise.noise_from(key), running_statistics.training(training, records=False):
        grads, value = torch.func.grad_and_value(loss_at)(moving)
    grads = detach(grads) if first_order else grads
    return *apply_rule(rule, grads, state, moving, value), value


def support_loss(learner: Learner, spec: EpisodeSpec) -> Loss:
    """Loss of the learner's outputs on a batch: (params, batch, step) -> [].

    >>> source = ml.tasks.Sinusoid(shots=10).build()
    >>> learner = ml.models.MLP(sizes=(8,)).build(source.spec)
    >>> loss = ml.inner.support_loss(learner, source.spec)
    >>> support = ml.tree.take(source.sample(ml.fold_in(0, "task"), 1), 0).support
    >>> path = ml.inner.adapt(loss, learner.init(ml.fold_in(0)), ml.inner.sgd(0.01), support, 5)
    >>> len(path.points), bool(path.losses[-1] < path.losses[0])
    (6, True)
    """
    if learner.outputs != spec.outputs:
        text = f"has {learner.outputs} outputs, the task needs {spec.outputs}"
        raise ConfigError(("model", text))
    loss_of = criterion(spec)

    def loss(params: Params, batch: Batch, step: int) -> Tensor:
        with padded(batch.weight, present=current().present):
            return weighted_loss(loss_of, learner.apply(params, batch.x), batch)

    return loss


def weighted_loss(loss_of: Criterion, outputs: Tensor, batch: Batch) -> Tensor:
    """`loss_of` by the weights of the batch, over the classes of the task's support set.

    These are the classes of the open scope (`padding.padded`), else those of the batch."""
    present = current().present
    if present is None:
        present = present_in(batch, outputs.shape[-1])
    return loss_of(without_absent(outputs, present), batch.y, batch.weight)
