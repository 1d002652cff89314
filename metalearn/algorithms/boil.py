"""Body only update in the inner loop (Oh, Yoo, Kim & Yun 2021, arXiv:2008.08882, section 3)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from metalearn.algorithms.maml import traits
from metalearn.algorithms.need import need_queries
from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.heads import is_head
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


class BOIL(Component):
    """MAML whose inner loop moves everything but the head, so that a new task changes the features.

    (b, h) = theta;  b_{s+1} = b_s - inner_lr * grad_b L_support(b_s, h);  minimise over b_0 and h
    the mean of L_query(b_S, h): the head is meta-learned and the same for every task.
    """

    name: Literal["boil"] = option("boil", "the method")
    inner_steps: int = option(
        1, "S, gradient steps of the body during meta-training", acts="train", ge=1, le=1000
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

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def bodies(meta: Meta, support: Batch, steps: int, keep: tuple[int, ...]) -> list[Params]:
            head, body = partition(meta, is_head)

            return adapt(loss, body, rule, support, steps, keep=keep, fixed=head).points

        def predict_one(meta: Meta, body: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(
                {**body, **partition(meta, is_head)[0]}, query_x, context=support.x
            )

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            body = bodies(meta, episode.support, self.inner_steps, (self.inner_steps,))[-1]
            said = predict_one(meta, body, episode.support, episode.query.x)
            return loss_of(said, episode.query.y), metrics(spec, said, episode.query.y)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            return bodies(meta, support, points[-1], points)

        task_grad, update = meta_gradient(task_loss, learner), outer_update(outer)
        return Method(
            spec=spec,
            traits=traits(learner),
            init=lambda key: begin(learner.init(key), outer),
            learn=learner_of_tasks(adapt_one, predict_one),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )
