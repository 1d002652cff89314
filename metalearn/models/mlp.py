"""The multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from metalearn.component import ModelComponent, option
from metalearn.models.functional import module_learner
from metalearn.models.norm import RUNNING, Norm, Policy
from metalearn.types import EpisodeSpec, Learner

Width = Annotated[int, Field(ge=1, le=65536)]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


class Perceptron(nn.Module):
    """flatten, then (linear, norm, activation) for each size, then the head."""

    def __init__(
        self, inputs: int, sizes: tuple[int, ...], outputs: int, activation: str, norm: Policy
    ) -> None:
        super().__init__()
        widths = (inputs, *sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(Norm(size, norm) for size in sizes) if norm != "none" else None
        self.activation = ACTIVATIONS[activation]()
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = x.flatten(1)
        for place, layer in enumerate(self.layers):
            z = layer(z)
            if self.norms is not None:
                z = self.norms[place](z, rows)
            z = self.activation(z)
        out: Tensor = self.head(z)
        return out


class MLP(ModelComponent):
    """A multi-layer perceptron of any sizes.

    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> learner = ml.models.MLP(sizes=(40, 40)).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 1])
    """

    name: Literal["mlp"] = option("mlp", "The model.")
    sizes: tuple[Width, ...] = option((40, 40), "Widths of the hidden layers.")
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = option(
        "relu", "Activation after every hidden layer."
    )
    norm: Policy = option("none", f"Normalisation policy of each hidden layer; {RUNNING}")
    init: Literal["uniform", "uniform_fan_out", "truncated_normal"] = option(
        "uniform",
        "Weight initialization: uniform in +-1/sqrt(fan in), as torch's layers; in +-1/sqrt(fan "
        "out), as in CAVIA's code for MAML; or truncated normal with standard deviation 0.01 and "
        "zero biases, as in MAML's sinusoid code.",
        acts="train",
    )

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for tasks of `spec`."""
        inputs = math.prod(spec.x_shape)
        return module_learner(
            lambda: Perceptron(inputs, self.sizes, spec.outputs, self.activation, self.norm),
            spec,
            policy=self.norm,
            init=self.init,
        )
