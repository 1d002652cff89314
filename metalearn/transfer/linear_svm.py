"""A linear support vector machine on frozen features (Crammer & Singer 2001)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.heads import identity, unit
from metalearn.inner.method import StepIndices, make_learn_functions
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.inner.svm import coefficients
from metalearn.losses import one_hot
from metalearn.transfer.pretrain import pretrained
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method

RIDGE = 1e-6  # on the diagonal of the kernel matrix, which equal examples make singular


class LinearSVM(MethodComponent):
    """Pretrain on all training classes, then fit a linear support vector machine to each new task.

    minimise over W:  1/2 sum_c |w_c|^2 + strength * sum of slacks,  slack = max over c of
    (1 [c != y] + w_c z) - w_y z,  z = f(x) / |f(x)|. The logits are W z. Takes no inner
    steps: the learning curve is constant.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.LinearSVM().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "transfer"
    name: Literal["linear_svm"] = option("linear_svm", "The method.")
    strength: float = option(1.0, "C, weight of the slack variables.", acts="adapt", gt=0)
    normalise: bool = option(True, "L2-normalise the features.", acts="adapt")
    iterations: int = option(300, "Iterations on the dual problem.", acts="adapt", ge=1, le=10000)
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
        require_classes(self.name, spec)
        preprocess = unit if self.normalise else identity

        def fit(meta: Meta, support: Batch, step_indices: StepIndices, key: Key) -> list[Tensor]:
            features = preprocess(learner.features(meta["params"], support.x))
            z = features.double()
            y = one_hot(support.y, spec.ways, z.dtype)
            weight = torch.ones_like(z[:, 0]) if support.weight is None else support.weight.double()
            kernel = z @ z.T + RIDGE * torch.eye(z.shape[0], dtype=z.dtype, device=z.device)
            w = z.T @ coefficients(kernel, y, self.strength * weight, self.iterations)
            return [w.to(features.dtype)]  # [D, N]

        def predict(meta: Meta, w: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = preprocess(learner.features(meta["params"], query_x, context=support.x))
            logits: Tensor = z @ w
            return logits

        learning = make_learn_functions(fit, predict, uses_steps=False)
        outer = self.outer.build(meta_steps)
        return pretrained(learner, spec, outer, learning, uses_steps=False)
