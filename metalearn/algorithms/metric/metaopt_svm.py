"""MetaOptNet with the support vector machine (Lee et al. 2019, arXiv:1904.03758, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.algorithms.metric.metaopt_net import MetaOptNet
from metalearn.component import option
from metalearn.inner.svm import coefficients


class MetaOptSVM(MetaOptNet):
    """Learn features for a multi-class support vector machine on each new task.

    minimise over W 1/2 sum_n |w_n|^2 + penalty * sum of slacks, by its dual of fixed
    iterations, whose derivative is exact;  logits = scale * z W. Loss and meta as in MetaOptNet.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.MetaOptSVM(iterations=20).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: projected descent and one linear solve in the place of an interior-point solver.
    name: Literal["metaopt_svm"] = option("metaopt_svm", "The method.")  # type: ignore[assignment]
    strength: float = option(
        1.0, "Added to the diagonal of the kernel matrix (authors' code).", gt=0
    )
    penalty: float = option(0.1, "C, weight of the slack variables.", gt=0)
    iterations: int = option(100, "Iterations of projected gradient descent.", ge=1, le=10000)
    scale: float = option(1.0, "Initial value of the scale.", acts="train", gt=0)

    def head(self, z: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        bound = self.penalty * (torch.ones_like(z[:, 0]) if weight is None else weight)
        kernel = z @ z.T + self.strength * torch.eye(z.shape[0], dtype=z.dtype, device=z.device)
        return z.T @ coefficients(kernel, y, bound, self.iterations)
