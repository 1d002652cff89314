"""Training from scratch on the support set: the baseline without up-front cost."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import StepIndices, make_learn_functions, make_traits
from metalearn.inner.options import inner_rule_option, refuse_two_rules
from metalearn.inner.requirements import require_random_start
from metalearn.inner.rules import Rule
from metalearn.transfer.pretrain import RULE, build_inner_rule
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, MetaState, Method, Params


class Scratch(MethodComponent):
    """Train on each new task from random initialization, without transfer.

    phi_0 ~ the initialization of the learner, from the key of the task;
    phi_{s+1} = phi_s - inner_lr * m_s,  m_s = inner_momentum * m_{s-1} + grad L_support(phi_s)

    Nothing is learned across tasks: `step` is None and the meta is the empty dict. Under the policy
    `running` the statistics keep their initial values (mean 0, variance 1), so nothing is
    normalised.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.Scratch(inner_lr=0.1).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "scratch"
    palette_index: ClassVar[int] = 99
    controls_searches: ClassVar[bool] = True
    name: Literal["scratch"] = option("scratch", "The method.")
    inner_lr: float = option(0.01, "Step size on a new task.", acts="adapt", gt=0)
    inner_momentum: float = option(0.0, "Momentum coefficient; 0: none.", acts="adapt", ge=0, lt=1)

    inner: Rule | None = inner_rule_option(RULE, acts="adapt")

    @model_validator(mode="after")
    def _check_inner(self) -> Scratch:
        refuse_two_rules(self, "inner_lr", "inner_momentum", scheduled=False)
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; `meta_steps` has no effect."""
        del meta_steps
        require_random_start(self.name, learner)
        rule = build_inner_rule(self.inner, self.inner_lr, self.inner_momentum)
        loss = support_loss(learner, spec)

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            return adapt(loss, learner.init(key), rule, support, steps[-1], keep=steps).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def init(key: Key) -> MetaState:
            return MetaState({}, {}, None, torch.zeros((), dtype=spec.dtype, device=spec.device))

        traits = make_traits(learner, consumes="nothing")
        return Method(spec, traits, init, *make_learn_functions(adapt_task, predict))
