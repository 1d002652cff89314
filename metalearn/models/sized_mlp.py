"""An MLP whose widths differ between initializations, in tensors of one shape.

Objectives of all sizes then form a batch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from metalearn import rng
from metalearn.component import ModelComponent, option
from metalearn.models.functional import require_floats
from metalearn.models.mlp import ACTIVATIONS
from metalearn.tree import STATS
from metalearn.types import EpisodeSpec, Key, Learner, Params

Width = Annotated[int, Field(ge=1, le=65536)]


class SizedMLP(ModelComponent):
    """An MLP with layers of random width, for training learned optimizers on networks of all sizes.

    Every initialization samples the width of each layer log-uniformly between `least` and its size;
    units beyond it are masked in every pass. The masks are stored with the running statistics,
    which neither gradients nor rules update. Weights are initially uniform in +-1 / sqrt(fan in),
    where fan in counts the units that are not masked.

    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> learner = ml.models.SizedMLP(sizes=(32,)).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 1])
    """

    name: Literal["sized_mlp"] = option("sized_mlp", "The model.")
    sizes: tuple[Width, ...] = option((64,), "Maximum widths of the hidden layers.", min_length=1)
    least: int = option(8, "Minimum width of a layer.", ge=1)
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = option(
        "relu", "Activation after every hidden layer."
    )

    @model_validator(mode="after")
    def _widths_ascend(self) -> SizedMLP:
        if self.least > min(self.sizes):
            text = f"least must be <= {min(self.sizes)}, the smallest of sizes (got {self.least})"
            raise ValueError(text)
        return self

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for tasks of `spec`."""
        widths, activation = (math.prod(spec.x_shape), *self.sizes), ACTIVATIONS[self.activation]()
        layers = len(self.sizes)

        def init(key: Key) -> Params:
            params: Params = {}
            key = key.to(spec.device)
            fan_in = torch.full((), float(widths[0]), dtype=spec.dtype, device=spec.device)
            for place in range(layers):
                layer = rng.fold_in(key, "layers", place)
                shape = (widths[place + 1], widths[place])
                weight, bias = _uniform_layer(layer, fan_in, shape)
                params |= {f"layers.{place}.weight": weight, f"layers.{place}.bias": bias}
                low, high = math.log(self.least), math.log(widths[place + 1] + 1)
                width = rng.fold_in(layer, "width")
                fan_in = rng.uniform(width, (), low, high, spec.dtype).exp().floor()
                mask = torch.arange(widths[place + 1], device=spec.device) < fan_in
                params[f"{STATS}mask.{place}"] = mask.to(spec.dtype)
            shape = (spec.outputs, widths[-1])
            weight, bias = _uniform_layer(rng.fold_in(key, "head"), fan_in, shape)
            return {**params, "head.weight": weight, "head.bias": bias}

        def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
            del context
            z = require_floats(x).flatten(1)
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


def _uniform_layer(key: Key, fan_in: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weight [rows, columns] and bias [rows], uniform within 1 / sqrt(fan_in)."""
    bound = fan_in.rsqrt()
    weight = rng.uniform(rng.fold_in(key, "weight"), shape, -1, 1, fan_in.dtype)
    bias = rng.uniform(rng.fold_in(key, "bias"), shape[:1], -1, 1, fan_in.dtype)
    return bound * weight, bound * bias
