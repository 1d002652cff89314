"""Almost no inner loop (Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157, section 4)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from metalearn.algorithms.maml import traits
from metalearn.algorithms.need import need_queries
from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.heads import is_head, linear
from metalearn.inner.method import (
    begin,
    learner_of_tasks,
    meta_gradient,
    outer_update,
    step_over_tasks,
)
from metalearn.inner.rules import Adam, Rule, any_rate, sgd
from metalearn.losses import criterion, metrics
from metalearn.tree import partition
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method, Params


class ANIL(Component):
    """MAML whose inner loop moves the head alone, on features that are computed once.

    (b, h) = theta;  h_{s+1} = h_s - inner_lr * grad_h L_support(b, h_s);  minimise over b and h_0
    the mean of L_query(b, h_S). The gradient for b goes through the query's features and, by the
    path of h, the support's."""

    name: Literal["anil"] = option("anil", "the method")
    inner_steps: int = option(
        5, "S, gradient steps of the head during meta-training", acts="train", ge=1, le=1000
    )
    inner_lr: float = option(0.1, "step size of the inner loop, in training and on new tasks", gt=0)
    outer: Rule = option(Adam(lr=1e-3), "rule of the meta-update", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, ConfigError without queries; `meta_steps` for the outer
        rule's schedule.
        """
        need_queries(self.name, spec)
        rule, outer = sgd(any_rate(self.inner_lr, spec)), self.outer.build(meta_steps)
        loss_of = criterion(spec)

        def loss(head: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(linear(head, batch.x), batch.y)  # batch.x: features [B, D]

        def heads(meta: Meta, support: Batch, steps: int, keep: tuple[int, ...]) -> list[Params]:
            head, body = partition(meta, is_head)
            # The body stands still: its forward pass is made once, not once a step, with the same
            # numbers.
            z = Batch(learner.features(body, support.x), support.y)
            return adapt(loss, head, rule, z, steps, keep=keep).points

        def see(meta: Meta, support: Batch, query_x: Tensor) -> Tensor:
            return learner.features(partition(meta, is_head)[1], query_x, context=support.x)

        def predict_one(meta: Meta, head: Any, support: Batch, z: Tensor) -> Tensor:
            return linear(head, z)

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            head = heads(meta, episode.support, self.inner_steps, (self.inner_steps,))[-1]
            said = linear(head, see(meta, episode.support, episode.query.x))
            return loss_of(said, episode.query.y), metrics(spec, said, episode.query.y)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            return heads(meta, support, points[-1], points)

        task_grad, update = meta_gradient(task_loss, learner), outer_update(outer)
        return Method(
            spec=spec,
            traits=traits(learner),
            init=lambda key: begin(learner.init(key), outer),
            learn=learner_of_tasks(adapt_one, predict_one, see=see),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )
