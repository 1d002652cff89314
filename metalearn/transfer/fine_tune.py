"""Pretraining and fine-tuning: the baseline of Finn, Abbeel & Levine 2017, section 5.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from metalearn.augment import Change as ImageChange
from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import support_loss
from metalearn.inner.heads import fresh_linear, identity, imprinted, is_head
from metalearn.inner.method import LearnFunctions
from metalearn.inner.options import Patterns, adapted_filter, inner_rule_option, refuse_two_rules
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule
from metalearn.transfer.fine_tuning.adaptation import Adaptation, Problem
from metalearn.transfer.linear_probe import Change, Start, learn_head
from metalearn.transfer.logistic_regression import copies_of_images, with_copies
from metalearn.transfer.pretrain import HEAD, RULE, build_inner_rule, pretrained
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule


class FineTune(MethodComponent):
    """Pretrain on examples of all training tasks, then fine-tune all layers, or only the head.

    theta = argmin of the mean loss over all training examples;  phi_0 = theta, for classes with a
    random head (chance at step 0, 1/N), or a head at the class means of the support set
    (`head_start: prototypes`, `inner.heads.imprinted`);  phi_{s+1} = phi_s - inner_lr * m_s,
    m_s = inner_momentum * m_{s-1} + grad L_support(phi_s). With `copies`, steps use augmented
    copies of the support images, and class means use the original images, as in
    P>M>F (Hu et al. 2022, arXiv:2204.07305, section 3.3). In regression the outputs stay the same
    and the pretrained head is kept at the start.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.FineTune(inner_lr=0.01).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "transfer"
    palette_index: ClassVar[int] = 3
    name: Literal["fine_tune"] = option("fine_tune", "The method.")
    adapts: Literal["all", "head"] | Patterns = option(
        "all",
        "What is fine-tuned: all layers, only the head on features that are computed once, "
        "or parameters by name or pattern such as [layer4.*, head].",
        acts="adapt",
    )
    head_start: Literal["random", "prototypes"] = option(
        "random",
        "Initialization of the head of a new task: random, or the class means.",
        acts="adapt",
        later=True,
    )
    inner_lr: float = option(0.01, "Step size on a new task.", acts="adapt", gt=0)
    inner_momentum: float = option(0.0, "Momentum coefficient; 0: none.", acts="adapt", ge=0, lt=1)
    inner: Rule | None = inner_rule_option(RULE, acts="adapt")
    copies: int = option(
        0,
        "Augmented copies per support image, used for the steps; 0: the original image. "
        "Images only.",
        acts="adapt",
        ge=0,
        le=100,
        later=True,
    )
    augment: tuple[ImageChange, ...] = option(
        ("crop", "flip", "colour"), "Augmentations of the copies.", acts="adapt", later=True
    )
    outer: Rule = option(Adam(lr=1e-3), "Optimizer of pretraining.", acts="train")

    @model_validator(mode="after")
    def _check_inner(self) -> FineTune:
        refuse_two_rules(self, "inner_lr", "inner_momentum", scheduled=False)
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; a schedule of `outer` needs `meta_steps`."""
        learning = self.learning(self._adaptation(learner, spec), spec)
        method = pretrained(learner, spec, self.outer.build(meta_steps), learning)
        traits = replace(method.traits, support_at_step_0=self.head_start == "prototypes")
        return method._replace(traits=traits)

    def learning(self, adaptation: Adaptation, spec: EpisodeSpec) -> LearnFunctions:
        """Return the learn functions of `adaptation`; variants override it."""
        return adaptation.by_rule(self.rule())

    def rule(self) -> UpdateRule:
        """Return the update rule of a new task."""
        return build_inner_rule(self.inner, self.inner_lr, self.inner_momentum)

    def parameter_filter(self, learner: Learner) -> Callable[[str], bool]:
        """Return the predicate of the names of parameters that are adapted on a new task."""
        if self.adapts == "head":
            return is_head
        return adapted_filter(None if self.adapts == "all" else self.adapts, learner)

    def _adaptation(self, learner: Learner, spec: EpisodeSpec) -> Adaptation:
        start = prototype_head(spec) if self.head_start == "prototypes" else default_head(spec)
        copies = copies_of_images(self.copies, self.augment, spec)

        def change(support: Batch, key: Key) -> Batch:
            return with_copies(support, key, copies, self.augment)

        if self.adapts == "head":
            return learn_head(learner, spec, start=start, change=change)
        return _learn_layers(learner, spec, self.parameter_filter(learner), start, change)


def default_head(spec: EpisodeSpec) -> Start:
    """Return the default initial head: random from the task's key; in regression, pretrained."""

    def start(meta: Meta, key: Key, support: Batch, z: Callable[[], Tensor]) -> Params:
        if not spec.classification:
            return partition(meta["params"], is_head)[0]
        return fresh_linear(key, spec.outputs, meta[HEAD]["head.weight"])  # only its width is used

    return start


def prototype_head(spec: EpisodeSpec) -> Start:
    """Return the initial head at the class means; raises ConfigError for regression."""
    require_classes("fine_tune with head_start: prototypes", spec)
    return lambda meta, key, support, z: imprinted(z(), support, spec.ways)


def _learn_layers(
    learner: Learner,
    spec: EpisodeSpec,
    is_adapted: Callable[[str], bool],
    head_start: Start,
    change: Change,
) -> Adaptation:
    """Return the Adaptation of `is_adapted` layers.

    Outputs of layers that the learner freezes are computed once per image."""
    rest = learner.after_frozen
    network, trained = (learner.frozen, rest) if rest is not None else (identity, learner)

    def start(meta: Meta, support: Batch, key: Key) -> Problem:
        body, x = meta["params"], network(support.x)
        head = head_start(meta, key, support, lambda: trained.features(body, x))
        adapted, fixed = partition({**body, **head}, is_adapted)
        batch = change(support, key)
        outputs = x if batch is support else network(batch.x)
        return Problem(adapted, fixed, batch._replace(x=outputs))

    def features(meta: Meta, support: Batch, query_x: Tensor) -> Tensor:
        return learner.frozen(query_x)  # type: ignore[no-any-return]

    def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
        context = support.x if rest is None else None  # frozen statistics need none
        return trained.apply(params, query_x, context=context)

    query_features = None if rest is None else features
    return Adaptation(support_loss(trained, spec), start, predict, query_features)
