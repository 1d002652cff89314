"""Meta-Baseline (Chen et al. 2021, arXiv:2003.04390, section 3.2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.embedding import embedding
from metalearn.inner.heads import class_means, is_head, unit
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Momentum, Rule
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method

CLASSIFIER = "classifier"


class MetaBaseline(MethodComponent):
    """Meta-train pretrained features for a nearest-centroid classifier with scaled cosines.

    p(n | x) = softmax_n(scale * cos(f(x), c_n)),  c_n the mean feature of class n (equation 2);
    meta = {"params", "classifier"}. `start` names the pretrained run, whose head is left out.
    Takes no inner steps: the learning curve is constant.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.MetaBaseline().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "metric"
    rule_branch: ClassVar[str | None] = CLASSIFIER
    name: Literal["meta_baseline"] = option("meta_baseline", "The method.")
    scale: float = option(10.0, "Initial scale of the cosine similarities.", acts="train", gt=0)
    outer: Rule = option(Momentum(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)

        def init(key: Key) -> Meta:
            start = learner.init(key)
            params = partition(start, is_head)[1]  # empty for a frozen network
            like = next(iter(start.values()))
            return {"params": params, CLASSIFIER: {"scale": like.new_full((), self.scale)}}

        def fit(meta: Meta, z: Tensor, support: Batch) -> Tensor:
            return unit(class_means(z, support.y, spec.ways, support.weight))  # [N, D]

        def answer(meta: Meta, centres: Any, support: Batch, z: Tensor) -> Tensor:
            logits: Tensor = meta[CLASSIFIER]["scale"] * unit(z) @ centres.T
            return logits

        return embedding(learner, spec, self.outer.build(meta_steps), fit, answer, init=init)
