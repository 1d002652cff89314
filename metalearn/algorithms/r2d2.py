"""R2-D2, differentiable ridge regression (Bertinetto et al. 2019, arXiv:1805.08136)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.embedding import embedding
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import one_hot
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method


class R2D2(MethodComponent):
    """Learn features for closed-form ridge regression on each new task.

    W = Z' (Z Z' + lambda I)^-1 Y (equation 6);  outputs alpha z W + beta (equation 7);  Z [B, D]
    are the features of the support set, Y [B, C] its one-hot labels or targets. Minimise the query
    loss over the features, lambda = exp(log_ridge), alpha and beta. Takes no inner steps: the
    learning curve is constant. The head parameters in the meta are unused.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.R2D2().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "metric"
    palette_index: ClassVar[int] = 13
    name: Literal["r2d2"] = option("r2d2", "The method.")
    ridge: float = option(1.0, "Initial value of lambda.", acts="train", gt=0)
    scale: float = option(
        10.0, "Initial value of alpha (authors' Omniglot script).", acts="train", gt=0
    )
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:

        def init(key: Key) -> Meta:
            params = learner.init(key)
            like = next(iter(params.values()))
            start = {"log_ridge": math.log(self.ridge), "scale": self.scale}
            if not spec.classification:  # one number added to all logits changes no probability
                start["offset"] = 0.0
            return {"params": params, **{k: like.new_full((), v) for k, v in start.items()}}

        def fit(meta: Meta, z: Tensor, support: Batch) -> Tensor:
            classes = spec.classification
            y = one_hot(support.y, spec.ways, z.dtype) if classes else support.y
            if support.weight is not None:  # rows of a weighted ridge regression; padding is 0
                root = support.weight.sqrt().unsqueeze(-1)
                z, y = root * z, root * y
            ridge = meta["log_ridge"].exp() * torch.eye(z.shape[0], dtype=z.dtype, device=z.device)
            weight: Tensor = z.T @ torch.linalg.solve(z @ z.T + ridge, y)  # [D, C]
            return weight

        def answer(meta: Meta, weight: Any, support: Batch, z: Tensor) -> Tensor:
            outputs: Tensor = meta["scale"] * z @ weight
            return outputs if spec.classification else outputs + meta["offset"]

        return embedding(learner, spec, self.outer.build(meta_steps), fit, answer, init=init)
