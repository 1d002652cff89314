"""Proto-MAML (Triantafillou et al. 2020, arXiv:1903.03096, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.heads import BIAS, WEIGHT, class_means
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.requirements import require_classes, require_head
from metalearn.inner.rules import Adam, Rule, rate_as_input, sgd
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class ProtoMAML(MethodComponent):
    """MAML whose head is initialized from the class means, with the logits of a ProtoNet.

    w_n = 2 c_n,  b_n = -|c_n|^2,  c_n the mean feature of class n (equation 8 and below);  all of
    (body, w, b) then take S gradient steps on the support loss. Gradients flow through the
    initial head. The head parameters in the meta are unused, so meta-parameters trained with other
    ways can be used directly.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.ProtoMAML(inner_steps=3).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 11
    rate_is_input: ClassVar[bool] = True
    name: Literal["proto_maml"] = option("proto_maml", "The method.")
    inner_steps: int = option(5, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.01, "Inner step size, in training and on new tasks.", gt=0)
    # The paper trains without second derivatives; here that is a field, as in MAML.
    first_order: bool = option(
        False, "Use the first-order approximation, without second derivatives.", acts="train"
    )
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)
        require_head(self.name, learner)
        rule, loss = sgd(rate_as_input(self.inner_lr, spec)), support_loss(learner, spec)

        def init(key: Key) -> Meta:
            params = learner.init(key)
            if BIAS not in params:
                text = "needs a head with a bias, which proto_maml sets to -|c_n|^2"
                raise ConfigError(("model", text))
            return params

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            z = learner.features(meta, support.x)
            centres = class_means(z, support.y, spec.ways, support.weight)
            head = {WEIGHT: 2 * centres, BIAS: -centres.square().sum(-1)}
            options: Any = {"keep": steps, "first_order": self.first_order}
            return adapt(loss, {**meta, **head}, rule, support, steps[-1], **options).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        options: Any = {"inner_steps": self.inner_steps, "init": init, "fixed_ways": False}
        outer = self.outer.build(meta_steps)
        method = episodic(learner, spec, outer, adapt_task, predict, **options)
        return method._replace(traits=replace(method.traits, support_at_step_0=True))
