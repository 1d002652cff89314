"""SimpleShot (Wang et al. 2019, arXiv:1911.04623): nearest class mean of centred unit features."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.heads import class_means, negative_squared_distance, unit
from metalearn.inner.method import (
    StepIndices,
    init_state,
    make_learn_functions,
    make_step_on_examples,
    make_update,
)
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.padding import padding_scope, weighted_moments, zero_padding
from metalearn.transfer.pretrain import LINEAR, example_gradient, pretrained, start_meta
from metalearn.tree import STATS
from metalearn.types import Batch, EpisodeSpec, Grads, Key, Learner, Meta, Method, Metrics

CENTRE, MEAN = "centre", f"{STATS}mean"


class SimpleShot(MethodComponent):
    """Pretrain on all training classes, then predict the nearest class mean of centred features.

    logit_c(x) = -|z - mean of z over the support of c|^2,  z = (f(x) - m) / |f(x) - m|
    (section 3, CL2N), m the mean of f over training examples. meta = {"params", "pretrain_head",
    "centre": {"stats.mean": m [D]}}. Takes no inner steps: the learning curve is constant.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.SimpleShot().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: m is a running average over the batches of pretraining, which needs no second
    # pass over the training examples; it is updated like running statistics.
    family: ClassVar[str] = "transfer"
    name: Literal["simple_shot"] = option("simple_shot", "The method.")
    momentum: float = option(
        0.05, "Weight of a batch in the running mean of the features.", acts="train", gt=0, le=1
    )
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
        require_classes(self.name, spec)
        gradient, outer = example_gradient(learner, spec, LINEAR), self.outer.build(meta_steps)

        def embed(meta: Meta, x: Tensor, context: Tensor | None = None) -> Tensor:
            z = learner.features(meta["params"], x, context=context)
            return unit(z - meta[CENTRE][MEAN])

        def fit(meta: Meta, support: Batch, step_indices: StepIndices, key: Key) -> list[Tensor]:
            return [class_means(embed(meta, support.x), support.y, spec.ways, support.weight)]

        def predict(meta: Meta, centres: Any, support: Batch, query_x: Tensor) -> Tensor:
            return negative_squared_distance(embed(meta, query_x, support.x), centres)

        def gradient_and_mean(meta: Meta, batch: Batch) -> tuple[Grads, Metrics]:
            batch = zero_padding(batch)
            pretrain_meta = {name: part for name, part in meta.items() if name != CENTRE}
            grads, batch_metrics = gradient(pretrain_meta, batch)
            with padding_scope(batch.weight):
                z = learner.features(meta["params"], batch.x)
            mean = z.mean(0) if batch.weight is None else weighted_moments(z, batch.weight)[0]
            old = meta[CENTRE][MEAN]  # the update subtracts, as for running statistics
            return {**grads, CENTRE: {MEAN: self.momentum * (old - mean)}}, batch_metrics

        def init(key: Key) -> Any:
            meta = start_meta(learner, spec, LINEAR, key)
            width = meta["pretrain_head"]["head.weight"]
            return init_state({**meta, CENTRE: {MEAN: torch.zeros_like(width[0])}}, outer)

        learning = make_learn_functions(fit, predict, uses_steps=False)
        method = pretrained(learner, spec, outer, learning, uses_steps=False)
        update = make_update(outer)
        draws_noise = learner.draws_noise
        step = make_step_on_examples(gradient_and_mean, update, spec, draws_noise=draws_noise)
        return method._replace(init=init, step=step)
