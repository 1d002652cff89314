"""RFS-simple (Tian et al. 2020, arXiv:2003.11539): a good embedding is all you need."""

from __future__ import annotations

from typing import Literal

from metalearn.component import option
from metalearn.inner.rules import Momentum, Rule
from metalearn.transfer.logistic_regression import LogisticRegression


class RFS(LogisticRegression):
    """Logistic regression on pretrained features of five augmented copies of each support image.

    minimise over W, b:  strength * sum of L(W z + b, y) + |W|^2 / 2 over the copies,
    z = features(x) / |features(x)|; the features are pretrained by gradient descent with momentum.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.RFS(copies=0).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # The default of `outer` follows a cosine, which fits any length of a run; the experiments rfs_*
    # have the authors' rule: l2 of 0.0005, factors of 0.1 at epochs 60 and 80 of 100 for
    # miniImageNet, at 45, 60 and 75 of 90 for CIFAR-FS and FC100.
    name: Literal["rfs"] = option("rfs", "The method.")  # type: ignore[assignment]
    copies: int = option(
        5, "Augmented copies per support image. Images only.", acts="adapt", ge=0, le=100
    )
    outer: Rule = option(
        Momentum(lr=0.05, schedule="cosine"), "Optimizer of pretraining.", acts="train"
    )
