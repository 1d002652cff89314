"""The common base of in-context learners: features of the model, a memory, predictions from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.embedding import feature_width
from metalearn.inner.heads import is_head
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.predictive import gaussian
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import one_hot
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class Sizes(NamedTuple):
    """Widths of the arrays that the parts exchange."""

    features: int
    labels: int  # of a label's code: N classes, or C targets
    outputs: int  # N logits, or C means and C raw standard deviations


class InContext(MethodComponent):
    """A network that reads the support set once and answers queries without a gradient step.

    meta = {"params": the model without its head, "context": the parameters of `start`}. The cost of
    the support set is that of `adapt`, each query's that of `predict`."""

    family: ClassVar[str] = "in_context"
    fixed_labels: ClassVar[bool] = True  # the labels' codes are an input of fixed width
    # An example sees the earlier ones alone: the order of the support set is part of the input.
    causal: ClassVar[bool] = False
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    @abstractmethod
    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        """Return the parameters other than the model's."""

    @abstractmethod
    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> Any:
        """Return the memory of a support set: features [B, D], codes of labels [B, N] or [B, C]."""

    @abstractmethod
    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        """Queries' features [M, D] -> logits [M, N], or means and raw standard devs. [M, 2C]."""

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        _require_plain_outputs(self.name, learner, spec)
        columns = spec.outputs

        def init(key: Key) -> Meta:
            params = {n: x for n, x in learner.init(key).items() if not is_head(n)}
            sizes = Sizes(feature_width(learner, params, spec), columns, _outputs(spec))
            context = self.start(rng.fold_in(key, "context"), sizes, spec.dtype)
            return {
                "params": params,
                "context": {name: value.to(spec.device) for name, value in context.items()},
            }

        def fit(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Any]:
            z = learner.features(meta["params"], support.x)
            y = support.y
            labels = one_hot(y, columns, z.dtype) if spec.classification else y.to(z.dtype)
            return [self.read(meta["context"], z, labels, support)]

        def predict(meta: Meta, memory: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = learner.features(meta["params"], query_x, context=support.x)
            return self.answer(meta["context"], memory, z, support)

        builder = episodic if spec.classification else gaussian
        return builder(
            learner,
            spec,
            self.outer.build(meta_steps),
            fit,
            predict,
            inner_steps=0,
            init=init,
            fixed_ways=self.fixed_labels,
        )


def _outputs(spec: EpisodeSpec) -> int:
    return spec.outputs if spec.classification else 2 * spec.outputs


def _require_plain_outputs(name: str, learner: Learner, spec: EpisodeSpec) -> None:
    """Raise ConfigError for a custom loss on targets, whose likelihood is a normal distribution."""
    if spec.objective is not None:
        text = f"{name} embeds examples with a network, but these tasks are functions without one"
        raise ConfigError(("method.name", f"{text}: use maml or learn_optimizer"))
    if not spec.classification and spec.loss not in (None, "mse"):
        text = f"is {spec.loss}, but {name} maximises the likelihood of a normal distribution"
        raise ConfigError(("loss", f"{text}: omit the loss"))
