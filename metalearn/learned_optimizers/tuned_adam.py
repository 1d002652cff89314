"""Adam with a tuned step size: the hand-made rule that learned ones are held against, from the same
starts.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt
from metalearn.inner.method import vmapped_learn
from metalearn.inner.rules import adam
from metalearn.learned_optimizers.starts import SENTENCE, WORDS, Init, needs_start, start_of
from metalearn.losses import criterion
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Key,
    Learner,
    Meta,
    MetaState,
    Method,
    Params,
    Traits,
)


class TunedAdam(MethodComponent):
    """Learn each new task by Adam, from a random, pretrained or meta-learned start.

    phi_{s+1} = phi_s + Adam(grad L_support(phi_s)). Nothing is learned across tasks: tune
    `inner_lr` on validation tasks. What the start cost is on the bill of the run that it names.
    """

    family: ClassVar[str] = "optimizer"
    name: Literal["tuned_adam"] = option("tuned_adam", "the method")
    init: Init = option("random", SENTENCE, acts="train")
    inner_lr: float = option(0.01, "step size on a new task", acts="adapt", gt=0)
    beta1: float = option(0.9, "decay of the first moment", acts="adapt", ge=0, lt=1)
    beta2: float = option(0.999, "decay of the second moment", acts="adapt", ge=0, lt=1)
    eps: float = option(1e-8, "added to the root of the second moment", acts="adapt", gt=0)

    @property
    def needs_start(self) -> str:
        return needs_start(self.init)

    @property
    def factors(self) -> dict[str, str]:
        return {"start": WORDS[self.init], "optimizer": "Adam"}

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` changes nothing here."""
        del meta_steps
        rule, loss_of = adam(self.inner_lr, self.beta1, self.beta2, self.eps), criterion(spec)
        start = start_of(self.init, learner, spec)

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            return adapt(
                loss, start.of_task(meta, key), rule, support, points[-1], keep=points
            ).points

        def predict_one(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def init(key: Key) -> MetaState:
            return MetaState(
                start.meta(key), {}, None, torch.zeros((), dtype=spec.dtype, device=spec.device)
            )

        policy = learner.normalisation
        traits = Traits(
            consumes="nothing",
            transductive=policy == "query_batch",
            normalisation=policy,
            fixed_ways=self.init == "meta",
        )
        return Method(
            spec=spec, traits=traits, init=init, learn=vmapped_learn(adapt_one, predict_one)
        )
