"""Training from scratch on the support set alone: what every up-front cost has to beat."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.method import learner_of_tasks
from metalearn.losses import criterion
from metalearn.transfer.pretrain import descent
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Key,
    Learner,
    Meta,
    MetaState,
    Method,
    Params,
    Traits,
)


class Scratch(Component):
    """Learn each new task from a fresh random start, with nothing carried over from other tasks.

    phi_0 ~ the learner's own start, drawn from the task's key;  phi_{s+1} = phi_s - inner_lr * m_s,
    with m_s = inner_momentum * m_{s-1} + grad L_support(phi_s)

    Nothing is learned across tasks: `step` is None and the meta is the empty dict. Under the policy
    `running` the statistics stay at their start (mean 0, variance 1), so nothing is normalised
    there."""

    name: Literal["scratch"] = option("scratch", "the method")
    inner_lr: float = option(0.01, "step size on a new task", acts="adapt", gt=0)
    inner_momentum: float = option(
        0.0, "share of the last step that is kept; 0: none", acts="adapt", ge=0, lt=1
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` changes nothing here."""
        del meta_steps
        rule, loss_of = descent(self.inner_lr, self.inner_momentum), criterion(spec)

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            return adapt(loss, learner.init(key), rule, support, points[-1], keep=points).points

        def predict_one(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def init(key: Key) -> MetaState:
            return MetaState({}, {}, None, torch.zeros((), dtype=spec.dtype, device=spec.device))

        policy = learner.normalisation
        return Method(
            spec=spec,
            traits=Traits(
                consumes="nothing", transductive=policy == "query_batch", normalisation=policy
            ),
            init=init,
            learn=learner_of_tasks(adapt_one, predict_one),
        )
