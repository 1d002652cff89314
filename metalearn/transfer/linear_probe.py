"""A new last layer on frozen features (Chen et al. 2019, arXiv:1904.04232, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt
from metalearn.inner.heads import identity, unit
from metalearn.inner.method import LearnFunctions, StepNumbers, learn_functions
from metalearn.inner.objective import weighted_loss
from metalearn.inner.options import inner_rule_option, refuse_two_rules
from metalearn.inner.requirements import require_head
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import criterion
from metalearn.transfer.pretrain import LINEAR, RULE, Head, pretrained, rule_of_task
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule

# (meta, the task's key, support set, its features z [B, D] when called) -> the new head
Start = Callable[[Meta, Key, Batch, Callable[[], Tensor]], Params]


def learn_head(
    learner: Learner,
    spec: EpisodeSpec,
    rule: UpdateRule,
    head: Head = LINEAR,
    *,
    start: Start | None = None,
    weight_decay: float = 0.0,
    normalise: bool = False,
) -> LearnFunctions:
    """Learning of a task that moves a new head and nothing else (`inner.method.learn_functions`).

    Minimises L(head(z), y) + weight_decay / 2 * |head|^2 over the head, z the features of the
    support set, which are computed once a task. `start` gives the head at step 0 (default: fresh,
    from the task's key)."""
    require_head("a method that learns a head alone", learner)
    loss_of = criterion(spec)
    preprocess = unit if normalise else identity

    def loss(leaves: Params, batch: Batch, step: int) -> Tensor:
        error = weighted_loss(loss_of, head.apply(leaves, batch.x), batch)
        if not weight_decay:
            return error
        squares = torch.stack([leaf.square().sum() for leaf in leaves.values()])
        return error + weight_decay / 2 * squares.sum()

    def adapt_task(meta: Meta, support: Batch, points: StepNumbers, key: Key) -> list[Params]:
        z = preprocess(learner.features(meta["params"], support.x))
        fresh = start or (lambda meta, key, support, z: head.init(key, spec.outputs, z()))
        leaves = fresh(meta, key, support, lambda: z)
        return adapt(loss, leaves, rule, support._replace(x=z), points[-1], keep=points).points

    def features(meta: Meta, support: Batch, query_x: Tensor) -> Tensor:
        return preprocess(learner.features(meta["params"], query_x, context=support.x))

    def predict(meta: Meta, leaves: Any, support: Batch, z: Tensor) -> Tensor:
        return head.apply(leaves, z)

    return learn_functions(adapt_task, predict, features=features)


class LinearProbe(MethodComponent):
    """Pretrain on all training classes, then learn a linear layer on the frozen features of a task.

    minimise over W, b:  L_support(W z + b) + weight_decay / 2 * (|W|^2 + |b|^2),  z = features(x),
    by gradient descent, or by the rule `inner`

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.LinearProbe().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures from Chen et al. 2019: every step sees the whole support set, not minibatches of 4;
    # their momentum is damped by 0.9, which but for the first step is ours with a tenth of the step
    # size. From Tian et al. 2020 (arXiv:2003.11539): descent stops at the asked steps, where theirs
    # solves the logistic regression.
    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 4
    name: Literal["linear_probe"] = option("linear_probe", "the method")
    inner_lr: float = option(0.1, "step size of the new layer", acts="adapt", gt=0)
    inner_momentum: float = option(
        0.9, "share of the last step that is kept; 0: none", acts="adapt", ge=0, lt=1
    )
    weight_decay: float = option(
        1e-3, "weight of half the squared norm of the new layer", acts="adapt", ge=0
    )
    normalise: bool = option(
        False, "give the features length 1 first (Tian et al. 2020)", acts="adapt"
    )
    inner: Rule | None = inner_rule_option(RULE, acts="adapt")
    outer: Rule = option(Adam(lr=1e-3), "rule of the pretraining", acts="train")

    @model_validator(mode="after")
    def _check_inner(self) -> LinearProbe:
        refuse_two_rules(self, "inner_lr", "inner_momentum", scheduled=False)
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` where the outer rule has a schedule."""
        learning = learn_head(
            learner,
            spec,
            rule_of_task(self.inner, self.inner_lr, self.inner_momentum),
            weight_decay=self.weight_decay,
            normalise=self.normalise,
        )
        return pretrained(learner, spec, self.outer.build(meta_steps), learning)
