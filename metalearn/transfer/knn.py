"""The nearest neighbours of pretrained features."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.heads import identity, negative_squared_distance, unit
from metalearn.inner.method import StepIndices, make_learn_functions
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import one_hot
from metalearn.transfer.pretrain import pretrained
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method

NEVER = -1e9  # log of the vote of an example that is not a neighbour
LEAST = -30.0  # log p of a class without a vote


class KNN(MethodComponent):
    """Pretrain on all training classes, then classify by the nearest support examples (k-NN).

    p(n | x) = sum over the k nearest i with y_i = n of softmax_i(-|z - z_i|^2 / temperature),
    z = features(x) / |features(x)| (the weights of Goldberger et al. 2005 among k neighbours).
    Takes no inner steps: the learning curve is constant. The outputs are log p [M, N].

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.KNN().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "transfer"
    name: Literal["knn"] = option("knn", "The method.")
    neighbours: int = option(1, "k, capped at the size of the support set.", acts="adapt", ge=1)
    temperature: float = option(0.1, "Scale of squared distances.", acts="adapt", gt=0)
    normalise: bool = option(True, "L2-normalise the features.", acts="adapt")
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
        require_classes(self.name, spec)
        preprocess = unit if self.normalise else identity

        def fit(
            meta: Meta, support: Batch, step_indices: StepIndices, key: Key
        ) -> list[tuple[Tensor, Tensor]]:
            other_classes = 1 - one_hot(support.y, spec.ways, support.x.dtype)
            z = preprocess(learner.features(meta["params"], support.x))
            return [(z, other_classes * NEVER)]  # [B, D], [B, N]

        def predict(meta: Meta, adapted: Any, support: Batch, query_x: Tensor) -> Tensor:
            support_z, mask = adapted
            z = preprocess(learner.features(meta["params"], query_x, context=support.x))
            scores = negative_squared_distance(z, support_z) / self.temperature  # [M, B]
            weight = support.weight
            if weight is not None:
                scores = torch.where(weight > 0, scores, torch.full_like(scores, NEVER))
            count = min(self.neighbours, support_z.shape[0])
            kth = scores.topk(count, -1).values[:, -1:]
            scores = torch.where(scores >= kth, scores, torch.full_like(scores, NEVER))
            if weight is not None:  # each example counts `weight` times
                scores = scores + torch.where(weight > 0, weight.log(), torch.zeros_like(weight))
            scores = torch.log_softmax(scores, -1)
            return torch.logsumexp(scores.unsqueeze(-1) + mask, -2).clamp(min=LEAST)

        learning = make_learn_functions(fit, predict, uses_steps=False)
        outer = self.outer.build(meta_steps)
        return pretrained(learner, spec, outer, learning, uses_steps=False)
