"""The nearest class mean of pretrained features (SimpleShot: Wang, Chao, Weinberger & van der
Maaten 2019).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from metalearn.component import Component, option
from metalearn.inner.heads import class_means, negative_squared_distance, unit
from metalearn.inner.method import learner_of_tasks
from metalearn.inner.rules import Adam, Rule
from metalearn.transfer.pretrain import pretrained, refuse_regression, traits_of
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method


class NearestCentroid(Component):
    """Pretrain on all training classes, then take the class whose mean support feature is nearest,
    without any step.

    logit_c(x) = -|z - mean of z over the support of c|^2,  z = features(x), divided by |z| where
    `normalise` (Wang et al. 2019, arXiv:1911.04623, section 3)
    """

    # Departure: features are not centred (the paper's CL2N), since their mean over all training
    # examples would be a second pass after pretraining; `normalise` is its L2N, without it UN.
    name: Literal["nearest_centroid"] = option("nearest_centroid", "the method")
    normalise: bool = option(
        True, "give features length 1 before means and distances", acts="adapt"
    )
    outer: Rule = option(Adam(lr=1e-3), "rule of the pretraining", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` where the outer rule has a schedule. Refuses
        regression.
        """
        refuse_regression("nearest_centroid", spec)

        def ready(z: Tensor) -> Tensor:
            return unit(z) if self.normalise else z

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Tensor]:
            return [
                class_means(
                    ready(learner.features(meta["params"], support.x)), support.y, spec.ways
                )
            ]

        def predict_one(meta: Meta, centres: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = ready(learner.features(meta["params"], query_x, context=support.x))
            return negative_squared_distance(z, centres)

        return pretrained(
            learner,
            spec,
            self.outer.build(meta_steps),
            learner_of_tasks(adapt_one, predict_one, uses_steps=False),
            traits=traits_of(learner, uses_steps=False, support_at_step_0=True),
        )
