"""Matching networks (Vinyals et al. 2016, arXiv:1606.04080, equations 1 and 2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.embedding import embedding
from metalearn.inner.heads import unit
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import one_hot
from metalearn.types import Batch, EpisodeSpec, Learner, Meta, Method


class MatchingNet(MethodComponent):
    """Learn features for attention over the support set that predicts the class of a query.

    p(n | x) = sum over i with y_i = n of a(x, x_i),
    a(x, x_i) = softmax over i of scale * cos(f(x), f(x_i));  minimise the mean of -log p(y | x)

    Takes no inner steps: the learning curve is constant. The outputs are log p [M, N].

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.MatchingNet(scale=10).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures: f and g are one network without the full-context embeddings of section 2.1.2. The
    # paper has no scale; 100 is that of Chen et al. 2019 (arXiv:1904.04232), without which no
    # weight can exceed its neighbours by more than e^2.
    family: ClassVar[str] = "metric"
    palette_index: ClassVar[int] = 12
    name: Literal["matching_net"] = option("matching_net", "The method.")
    scale: float = option(100.0, "Scale of the cosine similarities; 1 in the paper.", gt=0)
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)

        def fit(meta: Meta, z: Tensor, support: Batch) -> tuple[Tensor, Tensor]:
            other = 1 - one_hot(support.y, spec.ways, support.x.dtype)
            return unit(z), other * -1e9  # [B, D], [B, N]

        def answer(meta: Meta, adapted: Any, support: Batch, z: Tensor) -> Tensor:
            memory, mask = adapted
            scores = self.scale * unit(z) @ memory.T  # [M, B]
            if (weight := support.weight) is not None:  # a counts its example `weight` times
                scores = scores + torch.where(weight > 0, weight.log(), weight.new_tensor(-1e9))
            scores = torch.log_softmax(scores, -1)
            return torch.logsumexp(scores.unsqueeze(-1) + mask, -2)

        return embedding(learner, spec, self.outer.build(meta_steps), fit, answer)
