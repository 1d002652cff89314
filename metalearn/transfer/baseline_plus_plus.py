"""Baseline++ (Chen et al. 2019, arXiv:1904.04232): a cosine last layer everywhere."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.heads import WEIGHT, cosine, fresh_linear
from metalearn.inner.options import inner_rule_option, refuse_two_rules
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.transfer.linear_probe import learn_head
from metalearn.transfer.pretrain import RULE, Head, build_inner_rule, pretrained
from metalearn.types import EpisodeSpec, Key, Learner, Method, Params


class BaselinePlusPlus(MethodComponent):
    """Pretrain with a cosine classifier, then train a new one on frozen features of each new task.

    logit_c(x) = temperature * cos(features(x), w_c)   (Chen et al. 2019, section 3.2)

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.BaselinePlusPlus().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures from the authors' code: no weight-normalised w_c with a learned norm per class, so
    # every class has the same temperature (theirs is 2 up to 200 classes and 10 above, separately
    # in pretraining and on new tasks); every step uses the whole support set, not minibatches of 4;
    # their damped momentum equals ours with a tenth of the step size except in the first step.
    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 9
    name: Literal["baseline_plus_plus"] = option("baseline_plus_plus", "The method.")
    temperature: float = option(10.0, "Scale of the cosine, in pretraining and on new tasks.", gt=0)
    inner_lr: float = option(0.1, "Step size of the new layer.", acts="adapt", gt=0)
    inner_momentum: float = option(0.9, "Momentum coefficient; 0: none.", acts="adapt", ge=0, lt=1)
    weight_decay: float = option(
        1e-3, "Weight of half the squared norm of the new layer.", acts="adapt", ge=0
    )
    inner: Rule | None = inner_rule_option(RULE, acts="adapt")
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    @model_validator(mode="after")
    def _check_inner(self) -> BaselinePlusPlus:
        refuse_two_rules(self, "inner_lr", "inner_momentum", scheduled=False)
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
        require_classes(self.name, spec)
        head = Head(_init_directions, lambda leaves, z: cosine(leaves, z, self.temperature))
        rule = build_inner_rule(self.inner, self.inner_lr, self.inner_momentum)
        adaptation = learn_head(learner, spec, head, weight_decay=self.weight_decay)
        outer = self.outer.build(meta_steps)
        return pretrained(learner, spec, outer, adaptation.by_rule(rule), head)


def _init_directions(key: Key, outputs: int, like: Tensor) -> Params:
    """Return a linear head without its bias, which a cosine does not use."""
    return {WEIGHT: fresh_linear(key, outputs, like)[WEIGHT]}
