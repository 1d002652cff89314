"""The parameters of an objective without a network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.types import EpisodeSpec, Key, Learner, Params


class Own(ModelComponent):
    """Parameters of an objective without a network, such as the point of a quadratic.

    >>> spec = ml.tasks.Quadratics(dims=10).build().spec
    >>> learner = ml.models.Own().build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 1])
    """

    name: Literal["own"] = option("own", "The model.")

    def build(self, spec: EpisodeSpec) -> Learner:
        """Return a learner for tasks of `spec`; raises ConfigError if they have no parameters."""
        objective = spec.objective
        if objective is None:
            text = "is own, but these tasks have no parameters: use mlp"
            raise ConfigError(("model.name", text))

        def init(key: Key) -> Params:
            return {
                name: value.to(spec.device, spec.dtype)
                for name, value in objective.init(key).items()
            }

        def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            del context
            return objective.apply(params, x)

        def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            del params, context
            return torch.flatten(x, 1)

        return Learner(
            init, features, apply, lambda params, x: params, "none", spec.outputs, spec.x_shape
        )
