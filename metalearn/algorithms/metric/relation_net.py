"""Relation networks (Sung et al. 2018, arXiv:1711.06025, equation 1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.component import MethodComponent, option
from metalearn.inner.embedding import embedding, feature_width
from metalearn.inner.heads import class_means, fresh_linear, is_head
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.rng import fold_in
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params

RELATION = "relation"


class RelationNet(MethodComponent):
    """Learn features and a network that scores a query against the mean of each class.

    logit_n = g([c_n, f(x)]),  c_n the mean feature of class n, g an MLP with one hidden layer
    on their concatenation (equation 1; section 3.2 sums the features of a class). meta =
    {"params", "relation"}. Takes no inner steps: the learning curve is constant.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.RelationNet(hidden=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures: g is a perceptron on features [D], where the paper has two convolutional blocks on
    # their maps; cross-entropy of the logits in the place of the squared error of their sigmoid
    # (relationnet_softmax of Chen et al. 2019, arXiv:1904.04232).
    family: ClassVar[str] = "metric"
    name: Literal["relation_net"] = option("relation_net", "The method.")
    hidden: int = option(64, "Hidden units of the relation network.", acts="train", ge=1, le=4096)
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)

        def init(key: Key) -> Meta:
            start = learner.init(key)
            params = partition(start, is_head)[1]  # empty for a frozen network
            like = next(iter(start.values()))
            width = feature_width(learner, params, spec)
            relation: Params = {}
            for layer, size, outputs in (
                ("first", 2 * width, self.hidden),
                ("last", self.hidden, 1),
            ):
                linear = fresh_linear(fold_in(key, layer), outputs, like.new_zeros(1, size))
                relation |= {f"{layer}.{n[5:]}": x.to(like.device) for n, x in linear.items()}
            # One number added to all logits changes no probability.
            del relation["last.bias"]
            return {"params": params, RELATION: relation}

        def fit(meta: Meta, z: Tensor, support: Batch) -> Tensor:
            return class_means(z, support.y, spec.ways, support.weight)

        def answer(meta: Meta, centres: Any, support: Batch, z: Tensor) -> Tensor:
            return compare(meta[RELATION], z, centres)

        return embedding(learner, spec, self.outer.build(meta_steps), fit, answer, init=init)


def compare(relation: Params, z: Tensor, centres: Tensor) -> Tensor:
    """g([c_n, z]) of all pairs, the first layer on each half once: [M, D], [N, D] -> [M, N]."""
    left, right = relation["first.weight"].split(z.shape[-1], dim=-1)
    hidden = (centres @ left.T).unsqueeze(-3) + (z @ right.T).unsqueeze(-2)  # [M, N, H]
    return F.linear(torch.relu(hidden + relation["first.bias"]), relation["last.weight"])[..., 0]
