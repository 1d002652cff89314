"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999, algorithm 1).

The protocol is that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import Loss, adapt, support_loss
from metalearn.inner.method import (
    StepIndices,
    init_state,
    make_learn_functions,
    make_step_over_tasks,
    make_traits,
    make_update,
    training_noise,
)
from metalearn.inner.options import inner_rule_option, refuse_two_rules
from metalearn.inner.rules import SGD, Rule, adam
from metalearn.inner.statistics import add_stats_delta, stats_delta_of_pass
from metalearn.padding import class_mask_of, padding_scope, zero_padding
from metalearn.scopes.running_statistics import training_scope
from metalearn.tree import STATS, leaves, sub, take, trainable, tree_map
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Grads,
    Key,
    Lanes,
    Learner,
    Meta,
    MetaState,
    Method,
    Metrics,
    Params,
    State,
    UpdateRule,
)

# A number, made at import: a step that hashes a name cannot be compiled.
ORDER = int(rng.fold_in(0, "minibatches"))
# Branch of the meta with the slots of `adapt_slots: trained`; as running statistics, it has its
# change in place of a gradient (inner/statistics.py), so that every executor averages it.
SLOTS = f"{STATS}slots"


class Reptile(MethodComponent):
    """Learn an initialization by moving it towards the parameters after training on each task.

    phi = S steps of Adam (beta1 = 0) from theta on minibatches of the support set;
    theta <- theta - eps * mean over tasks of (theta - phi),  eps from `outer` (published: 1 falling
    linearly to 0). The query set is never used: tasks may have none, and `support_loss` [] is the
    mean loss over the inner steps. The state of Adam (slots and count) continues from task to task
    in training. On a new task it starts at zero, or with `adapt_slots: trained` from what training
    left, as in the evaluation of the authors' code: the mean over the tasks of the last meta-step.
    The meta is then {"params": theta, "stats.slots": that mean}.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.Reptile(inner_steps=5).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 1
    rule_branch: ClassVar[str | None] = SLOTS
    reads_queries: ClassVar[bool] = False  # in training
    name: Literal["reptile"] = option("reptile", "The method.")
    inner_steps: int = option(
        5, "S, inner steps on minibatches in training.", acts="train", ge=1, le=1000
    )
    inner_lr: float = option(
        1e-3, "Step size of the inner Adam, in training and on new tasks.", gt=0
    )
    inner: Rule | None = inner_rule_option(
        "Inner update rule, with its own lr; null: Adam with inner_lr."
    )
    inner_batch: int | None = option(
        10, "Support examples per minibatch in training; null: all.", acts="train", ge=1
    )
    adapt_batch: int | None = option(
        5, "Support examples per minibatch on new tasks; null: all.", acts="adapt", ge=1
    )
    adapt_slots: Literal["zero", "trained"] = option(
        "zero",
        "State of the inner rule at the start of a new task: zero, or what training left.",
        later=True,
    )
    outer: Rule = option(
        SGD(lr=1.0, schedule="linear"), "Outer optimizer, applied to theta - phi.", acts="train"
    )

    @model_validator(mode="after")
    def _check_inner(self) -> Reptile:
        refuse_two_rules(self, "inner_lr", scheduled=False)
        if self.adapt_slots == "zero" or self.inner is None:
            return self
        if not leaves(self.inner.build().init({"weight": torch.zeros(1)})):
            text = f"trained needs an inner rule with a state, and {self.inner.name} has none"
            raise ValueError(f"adapt_slots: {text}: use adam or momentum, or omit it")
        return self

    @property
    def minibatches(self) -> tuple[int | None, int | None]:
        return self.inner_batch, self.adapt_batch

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        # Departure: TensorFlow's Adam adds epsilon to the root of the uncorrected second moment
        # ("epsilon hat", end of section 2 of Kingma & Ba); here it is added after the correction.
        # Same value, 1e-8; it shows only where gradients are about as small, and not at all after
        # many steps, when the correction is 1.
        rule = adam(self.inner_lr, beta1=0.0)
        rule = rule if self.inner is None else self.inner.build()
        loss, outer = support_loss(learner, spec), self.outer.build(meta_steps)
        lanes = lanes_of(learner, rule)

        def init(key: Key) -> MetaState:
            return init_state(self._initial_meta(learner.init(key), rule), outer, lanes(key, 1))

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            params, slots = params_and_slots(meta)
            batch = minibatches(key, support, self.adapt_batch, steps[-1])
            with padding_scope(support.weight, class_mask=class_mask_of(support, spec.outputs)):
                return adapt(loss, params, rule, batch, steps[-1], state=slots, keep=steps).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        task_grad, update = self._task_grad(learner, loss, rule), make_update(outer)
        return Method(
            spec,
            make_traits(learner),
            init,
            *make_learn_functions(adapt_task, predict),
            task_grad=task_grad,
            update=update,
            step=make_step_over_tasks(task_grad, update, spec),
            lanes=lanes,
        )

    def _initial_meta(self, params: Params, rule: UpdateRule) -> Meta:
        # Departure of the default: the slots of a new task start at zero. The authors' evaluation
        # starts each test task from the optimizer's state that training left.
        if self.adapt_slots == "zero":
            return params
        return {"params": params, SLOTS: rule.init(trainable(params)[0])}

    def _task_grad(
        self, learner: Learner, loss: Loss, rule: UpdateRule
    ) -> Callable[[Meta, Episode, Lanes], tuple[Grads, Metrics, Lanes]]:
        def task_grad(meta: Meta, episode: Episode, lane: Lanes) -> tuple[Grads, Metrics, Lanes]:
            steps, key = self.inner_steps, rng.fold_in(episode.info["key"], ORDER)
            support = zero_padding(episode.support)
            batch = minibatches(key, support, self.inner_batch, steps)
            class_mask = class_mask_of(support, learner.outputs)
            noise = training_noise(learner, episode)
            params, slots = params_and_slots(meta)
            with noise, training_scope(), padding_scope(support.weight, class_mask=class_mask):
                path = adapt(loss, params, rule, batch, steps, state=lane, keep=(steps,))
            grads = sub(params, path.points[-1])
            grads = add_stats_delta(grads, stats_delta_of_pass(learner, params, support))
            if slots is not None:
                grads = {"params": grads, SLOTS: sub(slots, path.state)}
            return grads, {"support_loss": path.losses.mean().detach()}, path.state

        return task_grad


def params_and_slots(meta: Meta) -> tuple[Params, State | None]:
    """Return the network of a meta, and the initial slots of a new task if the meta has them."""
    return (meta["params"], meta[SLOTS]) if SLOTS in meta else (meta, None)


def lanes_of(learner: Learner, rule: UpdateRule) -> Callable[[Key, int], Lanes]:
    """The rule's state (Adam's slots) for each task of a step, its count included.

    They live on from task to task, as in the authors' code, which resets only the parameters.
    Departure with more than one task a step: there the tasks of a step follow each other on one
    set of slots; here each task slot has its own, so that they run side by side, and a new task
    starts from their mean (`adapt_slots: trained`).
    """

    def lanes(key: Key, count: int) -> Lanes:
        slots = rule.init(trainable(learner.init(key))[0])
        return tree_map(lambda x: x.expand(count, *x.shape).clone(), slots)

    return lanes


def minibatches(
    key: Key, support: Batch, size: int | None, steps: int
) -> Batch | Callable[[int], Batch]:
    """The minibatch of each step; the whole set where `size` is None.

    Fresh permutations of the support set, one after another, cut into pieces of `size`: drawn
    without replacement, and a piece may end one permutation and begin the next. The first pieces do
    not depend on `steps`. Padding is never drawn; other weights count in the loss alone.
    """
    if size is None or steps == 0:
        return support
    if support.weight is not None:
        return _weighted_minibatches(key, support, size, steps)
    count = support.x.shape[0]
    passes = -(-steps * size // count)
    order = rng.bits(key, (passes, count)).argsort(-1).flatten()  # [passes * count]

    def batch(step: int) -> Batch:
        index = order[step * size : (step + 1) * size]
        minibatch: Batch = take(support, index)
        return minibatch

    return batch


def _weighted_minibatches(
    key: Key, support: Batch, size: int, steps: int
) -> Callable[[int], Batch]:
    """The same of a support set with padding: each pass permutes the examples of positive weight.

    An example's place in a pass depends on the key, the pass and its own number alone, so that
    padding behind the others changes nothing.
    """
    assert support.weight is not None
    there, count = support.weight > 0, support.x.shape[0]
    numbers = torch.arange(count, device=key.device)
    passes = torch.arange(steps * size, device=key.device)  # as many where one example is there
    keys = rng.fold_in(rng.fold_in(key, passes).unsqueeze(-1), numbers)
    place = rng.uniform(keys, (), dtype=torch.float64)
    order = torch.where(there, place, torch.full_like(place, 2.0)).argsort(-1)  # [passes, B]
    real = there.sum().clamp(min=1)

    def batch(step: int) -> Batch:
        number = torch.arange(step * size, (step + 1) * size, device=key.device)
        row, column = number // real, number % real
        minibatch: Batch = take(support, order[row, column])
        return minibatch

    return batch
