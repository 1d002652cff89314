"""Pretraining and fine-tuning: the baseline of Finn, Abbeel & Levine 2017, section 5.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt
from metalearn.inner.heads import fresh_linear, imprinted, is_head
from metalearn.inner.method import LearnFunctions, StepNumbers, learn_functions
from metalearn.inner.objective import support_loss
from metalearn.inner.options import Patterns, inner_rule_option, moved_by, refuse_two_rules
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.transfer.linear_probe import Start, learn_head
from metalearn.transfer.pretrain import HEAD, RULE, pretrained, rule_of_task
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule


class FineTune(MethodComponent):
    """Pretrain on examples of all training tasks, then move all layers, or the head, on a new task.

    theta = argmin of the mean loss over all training examples;  phi_0 = theta, for classes with a
    head drawn from the task's key (step 0 is a guess, 1/N), or at the class means of the support
    set (`head_start: prototypes`, `inner.heads.imprinted`);  phi_{s+1} = phi_s - inner_lr * m_s,
    m_s = inner_momentum * m_{s-1} + grad L_support(phi_s). In regression the outputs stay the same
    and the pretrained head is kept at the start.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.FineTune(inner_lr=0.01).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 3
    name: Literal["fine_tune"] = option("fine_tune", "the method")
    adapts: Literal["all", "head"] | Patterns = option(
        "all",
        "what a new task moves: all layers, the head alone on features that are computed once, or "
        "parameters by name or pattern such as [layer4.*, head]",
        acts="adapt",
    )
    head_start: Literal["random", "prototypes"] = option(
        "random",
        "where the head of a new task starts: drawn from its key, or at its class means",
        acts="adapt",
        later=True,
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

        start = prototype_head(spec) if self.head_start == "prototypes" else usual_head(spec)
        if self.adapts == "head":
            learning = learn_head(learner, spec, rule, start=start)
        else:
            moves = moved_by(None if self.adapts == "all" else self.adapts, learner)
            learning = _learn_layers(learner, spec, rule, moves, start)
        method = pretrained(learner, spec, self.outer.build(meta_steps), learning)
        begun = replace(method.traits, support_at_step_0=self.head_start == "prototypes")
        return method._replace(traits=begun)


def usual_head(spec: EpisodeSpec) -> Start:
    """Drawn from the task's key for classes, the pretrained one in regression."""

    def start(meta: Meta, key: Key, support: Batch, z: Callable[[], Tensor]) -> Params:
        if not spec.classification:
            return partition(meta["params"], is_head)[0]
        return fresh_linear(key, spec.outputs, meta[HEAD]["head.weight"])  # whose width is read

    return start


def prototype_head(spec: EpisodeSpec) -> Start:
    """At the class means; ConfigError for regression."""
    require_classes("fine_tune with head_start: prototypes", spec)
    return lambda meta, key, support, z: imprinted(z(), support, spec.ways)


def _learn_layers(
    learner: Learner,
    spec: EpisodeSpec,
    rule: UpdateRule,
    moves: Callable[[str], bool],
    head_start: Start,
) -> LearnFunctions:
    loss = support_loss(learner, spec)

    def adapt_task(meta: Meta, support: Batch, points: StepNumbers, key: Key) -> list[Params]:
        body, x = meta["params"], support.x
        head = head_start(meta, key, support, lambda: learner.features(body, x))
        moving, fixed = partition({**body, **head}, moves)
        path = adapt(loss, moving, rule, support, points[-1], keep=points, fixed=fixed)
        return [{**fixed, **point} for point in path.points]

    def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
        return learner.apply(params, query_x, context=support.x)

    return learn_functions(adapt_task, predict)
