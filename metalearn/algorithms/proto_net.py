"""Prototypical networks (Snell, Swersky & Zemel 2017, arXiv:1703.05175, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.embedding import embedding
from metalearn.inner.heads import class_means, negative_squared_distance
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.types import Batch, EpisodeSpec, Learner, Meta, Method


class ProtoNet(MethodComponent):
    """Learn features in which a query is assigned to the class with the nearest mean.

    c_n = mean of f(x) over the support of class n (equation 1);  p(n | x) = softmax_n(-|f(x) -
    c_n|^2) (equation 2);  minimise the mean of -log p(y | x) over queries. Takes no inner
    steps: the learning curve is constant. The head parameters are unused, so meta-parameters
    trained with other ways (20 in training, 5 at test) can be used directly.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> ml.algorithms.ProtoNet().build(learner, source.spec).traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "metric"
    palette_index: ClassVar[int] = 2
    name: Literal["proto_net"] = option("proto_net", "The method.")
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)

        def fit(meta: Meta, z: Tensor, support: Batch) -> Tensor:
            return class_means(z, support.y, spec.ways, support.weight)

        def answer(meta: Meta, centres: Any, support: Batch, z: Tensor) -> Tensor:
            return negative_squared_distance(z, centres)

        return embedding(learner, spec, self.outer.build(meta_steps), fit, answer)
