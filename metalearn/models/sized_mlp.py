"""A perceptron whose widths differ from start to start, in one shape of tensors: objectives of all
sizes in a batch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from metalearn import rng
from metalearn.component import ModelComponent, option
from metalearn.models.mlp import ACTIVATIONS
from metalearn.tree import STATS
from metalearn.types import EpisodeSpec, Key, Learner, Params

Width = Annotated[int, Field(ge=1, le=65536)]


class SizedMLP(ModelComponent):
    """A perceptron with layers of random width, for learned optimizers that should meet networks of
    all sizes.

    Every start draws the width of each layer log-uniformly between `least` and its size; units
    beyond it are masked in every pass, and the masks lie with the running statistics, which neither
    gradients nor rules move. Weights begin uniform within 1 / sqrt(fan in) of the units that are
    there."""

    name: Literal["sized_mlp"] = option("sized_mlp", "the model")
    sizes: tuple[Width, ...] = option((64,), "largest widths of the hidden layers", min_length=1)
    least: int = option(8, "smallest width of a layer", ge=1)
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = option(
        "relu", "after every hidden layer"
    )

    @model_validator(mode="after")
    def _widths_ascend(self) -> SizedMLP:
        if self.least > min(self.sizes):
            raise ValueError(
                f"least {self.least} should be at most {min(self.sizes)}, the smallest of sizes"
            )
        return self

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for tasks of `spec`."""
        widths, activation = (math.prod(spec.x_shape), *self.sizes), ACTIVATIONS[self.activation]()
        layers = len(self.sizes)

        def layer(key: Key, fan_in: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
            bound = fan_in.rsqrt()
            weight = rng.uniform(rng.fold_in(key, "weight"), (rows, columns), -1, 1, spec.dtype)
            return bound * weight, bound * rng.uniform(
                rng.fold_in(key, "bias"), (rows,), -1, 1, spec.dtype
            )

        def init(key: Key) -> Params:
            params: Params = {}
            fan_in = torch.full((), float(widths[0]), dtype=spec.dtype, device=spec.device)
            for place in range(layers):
                own = rng.fold_in(key, "layers", place)
                weight, bias = layer(own, fan_in, widths[place + 1], widths[place])
                params |= {f"layers.{place}.weight": weight, f"layers.{place}.bias": bias}
                low, high = math.log(self.least), math.log(widths[place + 1] + 1)
                fan_in = (
                    rng.uniform(rng.fold_in(own, "width"), (), low, high, spec.dtype).exp().floor()
                )
                there = torch.arange(widths[place + 1], device=spec.device) < fan_in
                params[f"{STATS}mask.{place}"] = there.to(spec.dtype)
            weight, bias = layer(rng.fold_in(key, "head"), fan_in, spec.outputs, widths[-1])
            return {**params, "head.weight": weight, "head.bias": bias}

        def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            del context
            z = x.flatten(1)
            for place in range(layers):
                z = activation(
                    F.linear(z, params[f"layers.{place}.weight"], params[f"layers.{place}.bias"])
                )
                z = z * params[f"{STATS}mask.{place}"].detach()
            return z

        def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            return F.linear(features(params, x), params["head.weight"], params["head.bias"])

        return Learner(
            init, features, apply, lambda params, x: params, "none", spec.outputs, spec.x_shape
        )
