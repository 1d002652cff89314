"""Pretraining and fine-tuning: the baseline of Finn, Abbeel & Levine 2017, section 5.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt
from metalearn.inner.heads import fresh_linear, is_head
from metalearn.inner.method import LearnFunctions, StepNumbers, learn_functions
from metalearn.inner.objective import support_loss
from metalearn.inner.options import Patterns, inner_rule_option, moved_by, refuse_two_rules
from metalearn.inner.rules import Adam, Rule
from metalearn.transfer.linear_probe import learn_head
from metalearn.transfer.pretrain import HEAD, RULE, pretrained, rule_of_task
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule


class FineTune(MethodComponent):
    """Pretrain on examples of all training tasks, then move all layers, or the head, on a new task.

    theta = argmin of the mean loss over all training examples;  phi_0 = theta, for classes with a
    head drawn from the task's key (step 0 is a guess, 1/N);  phi_{s+1} = phi_s - inner_lr * m_s,
    m_s = inner_momentum * m_{s-1} + grad L_support(phi_s). In regression the outputs stay the same
    and the pretrained head is kept at the start."""

    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 3
    name: Literal["fine_tune"] = option("fine_tune", "the method")
    adapts: Literal["all", "head"] | Patterns = option(
        "all",
        "what a new task moves: all layers, the head alone on features that are computed once, or "
        "parameters by name or pattern such as [layer4.*, head]",
        acts="adapt",
    )
    inner_lr: float = option(0.01, "step size on a new task", acts="adapt", gt=0)
    inner_momentum: float = option(
        0.0, "share of the last step that is kept; 0: none", acts="adapt", ge=0, lt=1
    )
    inner: Rule | None = inner_rule_option(RULE, acts="adapt")
    outer: Rule = option(Adam(lr=1e-3), "rule of the pretraining", acts="train")

    @model_validator(mode="after")
    def _check_inner(self) -> FineTune:
        refuse_two_rules(self, "inner_lr", "inner_momentum", scheduled=False)
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` where the outer rule has a schedule."""
        rule = rule_of_task(self.inner, self.inner_lr, self.inner_momentum)

        def head_at_start(meta: Meta, key: Key, like: Tensor) -> Params:
            if spec.classification:
                return fresh_linear(key, spec.outputs, like)
            return partition(meta["params"], is_head)[0]

        if self.adapts == "head":
            learning = learn_head(learner, spec, rule, start=head_at_start)
        else:
            moves = moved_by(None if self.adapts == "all" else self.adapts, learner)
            learning = _learn_layers(learner, spec, rule, moves)
        return pretrained(learner, spec, self.outer.build(meta_steps), learning)


def _learn_layers(
    learner: Learner, spec: EpisodeSpec, rule: UpdateRule, moves: Callable[[str], bool]
) -> LearnFunctions:
    loss = support_loss(learner, spec)

    def adapt_task(meta: Meta, support: Batch, points: StepNumbers, key: Key) -> list[Params]:
        start = meta["params"]
        if spec.classification:  # of the old head only the width D is read
            start = {**start, **fresh_linear(key, spec.outputs, meta[HEAD]["head.weight"])}
        moving, fixed = partition(start, moves)
        path = adapt(loss, moving, rule, support, points[-1], keep=points, fixed=fixed)
        return [{**fixed, **point} for point in path.points]

    def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
        return learner.apply(params, query_x, context=support.x)

    return learn_functions(adapt_task, predict)
