"""The only inner loop of the project, and the support loss that it minimises."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import noise
from metalearn.errors import ConfigError
from metalearn.inner.flat_params import apply_rule
from metalearn.inner.heads import linear
from metalearn.inner.recompute import checkpoint, is_checkpointing
from metalearn.inner.stepwise import is_active, loop
from metalearn.losses import Criterion, criterion
from metalearn.padding import class_mask_of, current, mask_absent_classes, padding_scope
from metalearn.scopes.running_statistics import is_training, training_scope
from metalearn.tree import detach, trainable
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Key,
    Learner,
    Meta,
    Params,
    Path,
    State,
    UpdateRule,
)

# name of the class mask among the parameters that steps leave alone: the classes of the task, for
# the loss
CLASS_MASK = "padding.present"
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

    `batch` is the support set, or a function of the step that gives a minibatch. `keep` are the
    step indices whose parameters are returned as `Path.points` (default: all of 0 .. S; 0 is before
    the first step). `fixed` are further parameters that `loss` gets and steps leave unchanged, such
    as a head that is not adapted; points do not hold them. `first_order` treats every gradient as a
    constant for whoever differentiates through the path. Running statistics (names "stats.") are
    passed along unchanged. losses [S] are taken before each step.

    Under `recompute.checkpointing` activations are not stored from step to step: a gradient then
    flows through `params`, `fixed`, `batch` and `state` alone, not through what `loss` and `rule`
    close over. `step_invariant` promises that `loss` ignores the step, and that neither it nor the
    update of the rule captures anything task-specific: under `stepwise.stepwise` one compiled step
    then serves for all, and gradients flow as under `checkpointing`, but not through `batch`."""
    if steps < 0:
        raise ValueError(f"steps must be >= 0 (got {steps})")
    adapted, statistics = trainable(params)
    state = rule.init(adapted) if state is None else state
    start = _Start(adapted, state, statistics, _with_class_mask(fixed or {}))
    keep, uses_batch_stats = range(steps + 1) if keep is None else keep, is_training()
    inner_step = partial(_step, loss, rule, first_order, uses_batch_stats)
    if step_invariant and steps and is_active() and not noise.is_active():
        cache_key = (loss, rule.update, first_order, uses_batch_stats)
        return _compiled_steps(cache_key, partial(inner_step, 0), start, batch, steps, keep)
    return _eager_steps(inner_step, start, batch, steps, keep)


def _with_class_mask(fixed: Params) -> Params:
    """The fixed parameters and the class mask of the open scope, which a step gives to the loss."""
    class_mask = current().class_mask
    return fixed if class_mask is None else {**fixed, CLASS_MASK: class_mask}


class _Start(NamedTuple):
    params: Params  # that steps update
    state: State
    statistics: Params  # running statistics, part of every point
    fixed: Params


def _eager_steps(
    inner_step: Callable[..., Any], start: _Start, batch: Data, steps: int, keep: Collection[int]
) -> Path:
    params, state, statistics, fixed = start
    noisy, any_leaf = noise.is_active(), next(iter({**params, **statistics}.values()))
    points: list[Params] = []
    losses: list[Tensor] = []
    for step in range(steps + 1):
        if step in keep:
            points.append({**params, **statistics})
        if step == steps:
            break
        data = batch if isinstance(batch, Batch) else batch(step)
        args: tuple[Any, ...] = (params, state, {**statistics, **fixed}, data)
        args = (*args, noise.next_key()) if noisy else args
        this_step = partial(inner_step, step)
        params, state, loss = (
            checkpoint(this_step, *args) if is_checkpointing() else this_step(*args)
        )
        losses.append(loss)
    return Path(points, state, torch.stack(losses) if losses else any_leaf.new_zeros(0))


def _compiled_steps(
    cache_key: Any,
    inner_step: Callable[..., Any],
    start: _Start,
    batch: Data,
    steps: int,
    keep: Collection[int],
) -> Path:
    """The same path by `stepwise.loop`; steps of one `cache_key` share their compiled code."""
    params, state, statistics, fixed = start
    data = [batch] if isinstance(batch, Batch) else [batch(step) for step in range(steps)]
    data = data[:1] if all(part.x is data[0].x for part in data) else data
    between, last, state, losses = loop(
        cache_key, inner_step, params, state, {**statistics, **fixed}, data, steps, keep
    )
    first = [params] if 0 in keep else []
    points = [*first, *between, *([last] if steps in keep else [])]
    return Path([{**point, **statistics} for point in points], state, losses)


def _step(
    loss: Loss,
    rule: UpdateRule,
    first_order: bool,
    uses_batch_stats: bool,
    step: int,
    params: Params,
    state: State,
    constants: Params,
    data: Batch,
    key: Key | None = None,
) -> tuple[Params, State, Tensor]:
    """One step: (new parameters, state, loss before it).

    A second run in a backward pass, on whatever thread, is equal to the first: `key` gives the
    noise of `loss`, `uses_batch_stats` the statistics that normalise."""
    class_mask = constants.get(CLASS_MASK)
    constants = {name: value for name, value in constants.items() if name != CLASS_MASK}

    def loss_at(params: Params) -> Tensor:
        if class_mask is None:
            return loss({**params, **constants}, data, step)
        with padding_scope(None, class_mask=class_mask):
            return loss({**params, **constants}, data, step)

    with noise.noise_from(key), training_scope(uses_batch_stats, records=False):
        grads, value = torch.func.grad_and_value(loss_at)(params)
    grads = detach(grads) if first_order else grads
    return *apply_rule(rule, grads, state, params, value), value


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
        with padding_scope(batch.weight, class_mask=current().class_mask):
            return weighted_loss(loss_of, learner.apply(params, batch.x), batch)

    return loss


def linear_loss(spec: EpisodeSpec) -> Loss:
    """The loss of a linear head on the features z [B, D] of a batch, in place of its inputs."""
    loss_of = criterion(spec)

    def loss(head: Params, batch: Batch, step: int) -> Tensor:
        return weighted_loss(loss_of, linear(head, batch.x), batch)

    return loss


def predict_adapted(learner: Learner) -> Callable[[Meta, Params, Batch, Tensor], Tensor]:
    """`predict` of a method: the network with the adapted parameters in place of the learned."""

    def predict(meta: Meta, adapted: Params, support: Batch, query_x: Tensor) -> Tensor:
        return learner.apply({**meta, **adapted}, query_x, context=support.x)

    return predict


def weighted_loss(loss_of: Criterion, outputs: Tensor, batch: Batch) -> Tensor:
    """`loss_of` with the weights of the batch, over the classes of the task's support set.

    These are the classes of the open scope (`padding.padding_scope`), else those of the batch."""
    class_mask = current().class_mask
    if class_mask is None:
        class_mask = class_mask_of(batch, outputs.shape[-1])
    return loss_of(mask_absent_classes(outputs, class_mask), batch.y, batch.weight)
