"""Meta-SGD (Li, Zhou, Chen & Li 2017, arXiv:1707.09835, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn import rng
from metalearn.component import Engine, MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.options import Patterns, RateRange, adapted_filter, adapts_option
from metalearn.inner.rules import Adam, Rule, per_parameter
from metalearn.tree import partition, trainable
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class MetaSGD(MethodComponent):
    """Learn an initialization and a separate step size for every scalar parameter.

    phi_{s+1} = phi_s - rates * grad L_support(phi_s) (elementwise; the paper has S = 1);  minimise
    over meta = {"params": phi_0, "rates"} the mean of L_query(phi_S). A rate may turn negative.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> ml.algorithms.MetaSGD().build(learner, source.spec).traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 7
    engine_trains: ClassVar[Engine] = "all"
    name: Literal["meta_sgd"] = option("meta_sgd", "The method.")
    inner_steps: int = option(1, "S, inner steps in training.", acts="train", ge=1, le=1000)
    rate_range: RateRange = option((0.005, 0.1), "Initial learning rates.", acts="train")
    adapts: Patterns | None = adapts_option()
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        loss, outer = support_loss(learner, spec), self.outer.build(meta_steps)
        is_adapted = adapted_filter(self.adapts, learner)

        def init(key: Key) -> Meta:
            params = learner.init(key)
            rate = rng.uniform(rng.fold_in(key, "rates"), (1,), *self.rate_range, dtype=spec.dtype)
            adapted = partition(trainable(params)[0], is_adapted)[0].items()
            rates = {name: rate.to(x.device).expand(x.shape).clone() for name, x in adapted}
            return {"params": params, "rates": rates}

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            rule = per_parameter(meta["rates"])  # departure where S > 1: the same rates each step
            params, fixed = partition(meta["params"], is_adapted)
            return adapt(loss, params, rule, support, steps[-1], keep=steps, fixed=fixed).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply({**meta["params"], **params}, query_x, context=support.x)

        steps = self.inner_steps
        return episodic(learner, spec, outer, adapt_task, predict, inner_steps=steps, init=init)
