"""Logistic regression on frozen features, solved to convergence (Tian et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.augment import Change, augment, require_square
from metalearn.component import MethodComponent, option
from metalearn.inner.heads import identity, unit
from metalearn.inner.method import StepIndices, make_learn_functions
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import one_hot
from metalearn.padding import class_mask_of, padding_scope
from metalearn.rng import fold_in
from metalearn.transfer.lbfgs import solve
from metalearn.transfer.pretrain import pretrained
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method


class LogisticRegression(MethodComponent):
    """Pretrain on all training classes, then fit a logistic regression to features of each task.

    minimise over W, b:  strength * sum of L(W z + b, y) + |W|^2 / 2,  z = f(x) / |f(x)| (Tian et
    al. 2020, arXiv:2003.11539, section 3.1), by L-BFGS to convergence. With `copies`, each
    support image is replaced by that many augmented copies. Takes no inner steps: the learning
    curve is constant.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.LogisticRegression(strength=10).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "transfer"
    name: Literal["logistic_regression"] = option("logistic_regression", "The method.")
    strength: float = option(
        1.0, "C, weight of the loss relative to the penalty.", acts="adapt", gt=0
    )
    normalise: bool = option(True, "L2-normalise the features.", acts="adapt")
    iterations: int = option(60, "Iterations of L-BFGS.", acts="adapt", ge=1, le=1000)
    copies: int = option(
        0,
        "Augmented copies per support image; 0: the original image. Images only.",
        acts="adapt",
        ge=0,
        le=100,
    )
    augment: tuple[Change, ...] = option(
        ("crop", "flip", "colour"), "Augmentations of the copies.", acts="adapt"
    )
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
        require_classes(self.name, spec)
        copies = copies_of_images(self.copies, self.augment, spec)
        preprocess = unit if self.normalise else identity

        def fit(meta: Meta, support: Batch, step_indices: StepIndices, key: Key) -> list[Tensor]:
            support = with_copies(support, key, copies, self.augment)
            with padding_scope(support.weight):
                z = preprocess(learner.features(meta["params"], support.x))
            y = one_hot(support.y, spec.ways, z.dtype)
            weight = torch.ones_like(z[:, 0]) if support.weight is None else support.weight
            class_mask = class_mask_of(support, spec.ways)
            return [solve(z, y, weight, self.strength, self.iterations, class_mask)]

        def predict(meta: Meta, w: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = preprocess(learner.features(meta["params"], query_x, context=support.x))
            logits: Tensor = z @ w[:, :-1].T + w[:, -1]
            return logits

        learning = make_learn_functions(fit, predict, uses_steps=False)
        outer = self.outer.build(meta_steps)
        return pretrained(learner, spec, outer, learning, uses_steps=False)


def copies_of_images(copies: int, changes: tuple[Change, ...], spec: EpisodeSpec) -> int:
    """Return `copies` for images, else 0; raises ConfigError for changes that they cannot have."""
    if len(spec.x_shape) != 3 or not copies:
        return 0
    require_square(changes, spec.x_shape)
    return copies


def with_copies(support: Batch, key: Key, copies: int, changes: tuple[Change, ...]) -> Batch:
    """Return augmented copies of the support set, with a separate key for each image."""
    if not copies:
        return support
    indices = torch.arange(support.x.shape[0], device=support.x.device)
    keys = (fold_in(key, copy, indices) for copy in range(copies))
    x = torch.cat([augment(support.x, copy_key, changes) for copy_key in keys])
    weight = None if support.weight is None else support.weight.repeat(copies)
    return Batch(x, torch.cat([support.y] * copies), weight)
