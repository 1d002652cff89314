"""A new last layer on frozen features (Chen et al. 2019, arXiv:1904.04232, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import Loss, weighted_loss
from metalearn.inner.heads import identity, unit
from metalearn.inner.options import inner_rule_option, refuse_two_rules
from metalearn.inner.requirements import require_head
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import criterion
from metalearn.padding import padding_scope
from metalearn.transfer.fine_tuning.adaptation import Adaptation, Problem
from metalearn.transfer.pretrain import LINEAR, RULE, Head, build_inner_rule, pretrained
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params

# (meta, key of the task, support set, function that returns its features z [B, D]) -> initial head
Start = Callable[[Meta, Key, Batch, Callable[[], Tensor]], Params]
Change = Callable[[Batch, Key], Batch]  # (support set, key of the task) -> training examples


def unchanged(support: Batch, key: Key) -> Batch:
    return support


def learn_head(
    learner: Learner,
    spec: EpisodeSpec,
    head: Head = LINEAR,
    *,
    start: Start | None = None,
    change: Change = unchanged,
    weight_decay: float = 0.0,
    normalise: bool = False,
) -> Adaptation:
    """Return an Adaptation that trains only a new head.

    Minimises L(head(z), y) + weight_decay / 2 * |head|^2 over the head; z are the features of the
    support set after `change`, computed once per task. `start` returns the head at step 0
    (default: random, from the task's key)."""
    require_head("a method that trains only a head", learner)
    preprocess = unit if normalise else identity

    def support_features(meta: Meta, batch: Batch) -> Tensor:
        with padding_scope(batch.weight):
            return preprocess(learner.features(meta["params"], batch.x))

    def start_task(meta: Meta, support: Batch, key: Key) -> Problem:
        batch = change(support, key)
        z = support_features(meta, batch)
        init_head = start or (lambda meta, key, support, z: head.init(key, spec.outputs, z()))
        leaves = init_head(
            meta, key, support, lambda: z if batch is support else support_features(meta, support)
        )
        return Problem(leaves, {}, batch._replace(x=z))

    def features(meta: Meta, support: Batch, query_x: Tensor) -> Tensor:
        return preprocess(learner.features(meta["params"], query_x, context=support.x))

    def predict(meta: Meta, leaves: Any, support: Batch, z: Tensor) -> Tensor:
        return head.apply(leaves, z)

    return Adaptation(_loss(head, spec, weight_decay), start_task, predict, features)


def _loss(head: Head, spec: EpisodeSpec, weight_decay: float) -> Loss:
    loss_of = criterion(spec)

    def loss(leaves: Params, batch: Batch, step: int) -> Tensor:
        error = weighted_loss(loss_of, head.apply(leaves, batch.x), batch)
        if not weight_decay:
            return error
        squares = torch.stack([leaf.square().sum() for leaf in leaves.values()])
        return error + weight_decay / 2 * squares.sum()

    return loss


class LinearProbe(MethodComponent):
    """Pretrain on all training classes, then train a linear layer on frozen features.

    minimise over W, b:  L_support(W z + b) + weight_decay / 2 * (|W|^2 + |b|^2),  z = features(x),
    by gradient descent, or by the rule `inner`

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.LinearProbe().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures from Chen et al. 2019: every step uses the whole support set, not minibatches of 4;
    # their momentum is damped by 0.9, which equals ours with a tenth of the step size except in the
    # first step. From Tian et al. 2020 (arXiv:2003.11539): gradient descent stops at the requested
    # steps; theirs solves the logistic regression.
    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 4
    name: Literal["linear_probe"] = option("linear_probe", "The method.")
    inner_lr: float = option(0.1, "Step size of the new layer.", acts="adapt", gt=0)
    inner_momentum: float = option(0.9, "Momentum coefficient; 0: none.", acts="adapt", ge=0, lt=1)
    weight_decay: float = option(
        1e-3, "Weight of half the squared norm of the new layer.", acts="adapt", ge=0
    )
    normalise: bool = option(
        False, "L2-normalise the features first (Tian et al. 2020).", acts="adapt"
    )
    inner: Rule | None = inner_rule_option(RULE, acts="adapt")
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    @model_validator(mode="after")
    def _check_inner(self) -> LinearProbe:
        refuse_two_rules(self, "inner_lr", "inner_momentum", scheduled=False)
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; a schedule of `outer` needs `meta_steps`."""
        rule = build_inner_rule(self.inner, self.inner_lr, self.inner_momentum)
        adaptation = learn_head(
            learner, spec, weight_decay=self.weight_decay, normalise=self.normalise
        )
        outer = self.outer.build(meta_steps)
        return pretrained(learner, spec, outer, adaptation.by_rule(rule))
