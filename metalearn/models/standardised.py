"""Columns of a table as they are, at unit scale."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from metalearn import rng
from metalearn.component import ModelComponent, option
from metalearn.padding import standardise
from metalearn.types import EpisodeSpec, Key, Learner, Params


class Standardised(ModelComponent):
    """A linear layer on standardised columns: no network, for methods that work on features.

    features(x) = (x - mean) / standard deviation of each column over the support set, clipped at
    5; a column that is constant there is 0.

    >>> source = ml.tasks.RealTables().build()
    >>> learner = ml.models.Standardised().build(source.spec)
    >>> list(learner.init(ml.fold_in(0)))
    ['head.weight', 'head.bias']
    """

    name: Literal["standardised"] = option("standardised", "The model.")

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for tasks of `spec`, whose only parameters are those of the head."""
        width = math.prod(spec.x_shape)
        bound = 1 / math.sqrt(width)

        def init(key: Key) -> Params:
            key = key.to(spec.device)
            shapes = {"head.weight": (spec.outputs, width), "head.bias": (spec.outputs,)}
            return {
                leaf: rng.uniform(rng.fold_in(key, leaf), shape, -bound, bound, spec.dtype)
                for leaf, shape in shapes.items()
            }

        def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            del params
            return standardise(x, context)[0]

        def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            z = features(params, x, context)
            outputs: Tensor = F.linear(z, params["head.weight"], params["head.bias"])
            return outputs

        return Learner(
            init, features, apply, lambda params, x: params, "none", spec.outputs, spec.x_shape
        )
