"""The nearest class mean of pretrained features (SimpleShot, Wang et al. 2019)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.heads import class_means, identity, negative_squared_distance, unit
from metalearn.inner.method import StepIndices, make_learn_functions
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.transfer.pretrain import pretrained
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method


class NearestCentroid(MethodComponent):
    """Pretrain on all training classes, then choose the class with the nearest mean feature.

    logit_c(x) = -|z - mean of z over the support of c|^2,  z = features(x), divided by |z| where
    `normalise` (Wang et al. 2019, arXiv:1911.04623, section 3)

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.NearestCentroid().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: features are not centred (the paper's CL2N), since their mean over all training
    # examples needs a second pass after pretraining; `normalise` is its L2N, otherwise UN.
    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 8
    name: Literal["nearest_centroid"] = option("nearest_centroid", "The method.")
    normalise: bool = option(
        True, "L2-normalise the features before means and distances.", acts="adapt"
    )
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
        require_classes(self.name, spec)
        preprocess = unit if self.normalise else identity

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Tensor]:
            z = preprocess(learner.features(meta["params"], support.x))
            return [class_means(z, support.y, spec.ways, support.weight)]

        def predict(meta: Meta, centres: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = preprocess(learner.features(meta["params"], query_x, context=support.x))
            return negative_squared_distance(z, centres)

        learning = make_learn_functions(adapt_task, predict, uses_steps=False)
        outer = self.outer.build(meta_steps)
        return pretrained(learner, spec, outer, learning, uses_steps=False)
