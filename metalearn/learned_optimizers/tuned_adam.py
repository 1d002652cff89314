"""Adam with a tuned step size: hand-designed baseline of learned rules, from the same starts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import StepIndices, make_learn_functions, make_traits
from metalearn.inner.rules import adam
from metalearn.learned_optimizers.starts import INIT, LABELS, Init, build_start, needs_start
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, MetaState, Method, Params


class TunedAdam(MethodComponent):
    """Train on each new task with Adam, from random, pretrained or meta-learned parameters.

    phi_{s+1} = phi_s + Adam(grad L_support(phi_s)). Nothing is learned across tasks: tune
    `inner_lr` on validation tasks. The up-front cost is that of the run named by `start`.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.learned_optimizers.TunedAdam(inner_lr=0.1).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "optimizer"

    name: Literal["tuned_adam"] = option("tuned_adam", "The method.")
    init: Init = option("random", INIT, acts="train")
    inner_lr: float = option(0.01, "Step size on a new task.", acts="adapt", gt=0)
    beta1: float = option(0.9, "Decay rate of the first moment.", acts="adapt", ge=0, lt=1)
    beta2: float = option(0.999, "Decay rate of the second moment.", acts="adapt", ge=0, lt=1)
    eps: float = option(1e-8, "Added to the square root of the second moment.", acts="adapt", gt=0)

    @property
    def needs_start(self) -> str:
        return needs_start(self.init)

    @property
    def factors(self) -> dict[str, str]:
        return {"start": LABELS[self.init], "optimizer": "Adam"}

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; `meta_steps` has no effect."""
        del meta_steps
        rule = adam(self.inner_lr, self.beta1, self.beta2, self.eps)
        loss, start = support_loss(learner, spec), build_start(self.init, learner, spec)

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            phi = start.init_params(meta, key)
            return adapt(loss, phi, rule, support, steps[-1], keep=steps).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def init(key: Key) -> MetaState:
            zero = torch.zeros((), dtype=spec.dtype, device=spec.device)
            return MetaState(start.meta(key), {}, None, zero)

        traits = make_traits(learner, consumes="nothing", fixed_ways=self.init == "meta")
        return Method(spec, traits, init, *make_learn_functions(adapt_task, predict))
