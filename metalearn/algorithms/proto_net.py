"""Prototypical networks (Snell, Swersky & Zemel 2017, arXiv:1703.05175, algorithm 1)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from metalearn.algorithms.need import need_classes, need_queries
from metalearn.component import Component, option
from metalearn.inner.heads import class_means, negative_squared_distance
from metalearn.inner.method import (
    begin,
    learner_of_tasks,
    meta_gradient,
    outer_update,
    step_over_tasks,
)
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import criterion, metrics
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method, Traits


class ProtoNet(Component):
    """Learn features in which a new example belongs to the class with the nearest mean.

    c_n = mean of f(x) over the support of class n (equation 1);  p(n | x) = softmax_n(-|f(x) -
    c_n|^2) (equation 2); minimise the mean of -log p(y | x) over queries. No steps: one constant
    point at every step of a curve. meta is the Learner's flat dict. The head's leaves are in it and
    unused: their gradient is zero and they keep their start, so a meta of other ways (20 in
    training, 5 in the test) works as it is."""

    name: Literal["proto_net"] = option("proto_net", "the method")
    outer: Rule = option(Adam(lr=1e-3), "rule of the meta-update", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; ConfigError for regression and for tasks without
        queries.
        """
        need_classes(self.name, spec)
        need_queries(self.name, spec)
        outer, loss_of = self.outer.build(meta_steps), criterion(spec)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Tensor]:
            return [class_means(learner.features(meta, support.x), support.y, spec.ways)]

        def predict_one(meta: Meta, centres: Any, support: Batch, query_x: Tensor) -> Tensor:
            # Departure: the authors' code normalises support and queries as one batch in training
            # and by running averages in the test. Here the learner's policy holds for both, and the
            # queries are a batch of their own.
            return negative_squared_distance(
                learner.features(meta, query_x, context=support.x), centres
            )

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            centres = adapt_one(meta, episode.support, (0,), episode.info["key"])[0]
            said = predict_one(meta, centres, episode.support, episode.query.x)
            return loss_of(said, episode.query.y), metrics(spec, said, episode.query.y)

        task_grad, update = meta_gradient(task_loss, learner), outer_update(outer)
        return Method(
            spec=spec,
            traits=Traits(
                consumes="episodes",
                uses_steps=False,
                support_at_step_0=True,
                transductive=learner.normalisation == "query_batch",
                normalisation=learner.normalisation,
            ),
            init=lambda key: begin(learner.init(key), outer),
            learn=learner_of_tasks(adapt_one, predict_one, uses_steps=False),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )
