"""A tiny perceptron for every parameter with Adafactor's features (Metz et al. 2022,
arXiv:2203.11860).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.learned_optimizers.cells import mlp, start_mlp
from metalearn.learned_optimizers.features import TIMES, by_rms, rolling, time_features
from metalearn.learned_optimizers.learned import LearnedRule, Now, Theta, over_tensors
from metalearn.learned_optimizers.mlp import stride
from metalearn.types import Key, Params, State

DECAYS = {
    "momentum": (0.9, 0.99, 0.999),
    "rms": (0.999,),
    "factor": (0.9, 0.99, 0.999),
}  # before any is learned
TINY = 1e-8


class AdafactorMLP(Component):
    """One tiny perceptron for every parameter, which sees Adam's and Adafactor's statistics.

    39 features: g, p, m (3 decays), v, m / sqrt(v) (3), 1 / sqrt(v), g by Adafactor's factored
    second moments (3), their rows and columns (6), the inverse roots of these (6), m by the
    factored moments (3), each divided by its root mean square over the tensor; tanh(step / t - 1)
    at 11 scales.  (d, s) = perceptron(features); u = -step_size * d * e^(exponent * s). The decays
    are learned too, as log(1 - decay) / 10. Moments are factored over a tensor's two largest
    dimensions (Shazeer & Stern 2018, arXiv:1804.04235); a vector keeps them whole, as its rows and
    its columns. The horizon is not seen."""

    name: Literal["adafactor_mlp"] = option("adafactor_mlp", "the rule")
    hidden: int = option(4, "width of a layer", ge=1, le=1024)
    layers: int = option(2, "hidden layers", ge=1, le=8)
    step_size: float = option(1e-3, "factor of a step", gt=0)
    exponent: float = option(1e-3, "factor of the logarithm of a step's size", ge=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""
        sizes = (28 + len(TIMES), *[self.hidden] * self.layers, 2)

        def init(key: Key) -> Theta:
            logs = {
                name: [math.log(1 - decay) / 10 for decay in decays]
                for name, decays in DECAYS.items()
            }
            theta = {
                f"decay.{name}": torch.tensor(log, dtype=dtype, device=key.device)
                for name, log in logs.items()
            }
            return {**theta, **start_mlp(key, sizes, dtype)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, now: Now
        ) -> tuple[Tensor, State]:
            after = moments(theta, grad, slots)
            x = by_rms(columns(grad, param, after))
            said = mlp(theta, x, now.seen, len(sizes) - 1)
            return stride(said, self.step_size, self.exponent).reshape(grad.shape), after

        return LearnedRule(init, over_tensors(start, move, time_features))


def two_largest(shape: torch.Size) -> tuple[int, int] | None:
    """(second largest, largest) dimension of a tensor; None of a vector or a number."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return order[-2], order[-1]


def start(param: Tensor) -> State:
    """Momenta [3, *X], second moment [1, *X], rows [3, *X with 1 for the largest axis], columns [3,
    ... second].
    """
    rows, cols = factors(torch.zeros_like(param))
    return {
        "momenta": param.new_zeros(3, *param.shape),
        "second": param.new_zeros(1, *param.shape),
        "rows": param.new_zeros(3, *rows.shape),
        "cols": param.new_zeros(3, *cols.shape),
    }


def factors(square: Tensor) -> tuple[Tensor, Tensor]:
    """Means of a squared gradient along its largest and its second largest dimension; a vector
    itself, twice.
    """
    axes = two_largest(square.shape)
    if axes is None:
        return square, square
    return square.mean(axes[1], keepdim=True), square.mean(axes[0], keepdim=True)


def moments(theta: Theta, grad: Tensor, slots: State) -> State:
    """The slots after one more gradient."""
    decay = {name: (1 - (10 * theta[f"decay.{name}"]).exp()).clamp(0, 1) for name in DECAYS}
    square = grad * grad
    rows, cols = factors(square)
    return {
        "momenta": rolling(slots["momenta"], grad, decay["momentum"]),
        "second": rolling(slots["second"], square, decay["rms"]),
        "rows": rolling(slots["rows"], rows, decay["factor"]),
        "cols": rolling(slots["cols"], cols, decay["factor"]),
    }


def columns(grad: Tensor, param: Tensor, slots: State) -> list[Tensor]:
    """28 features of one tensor, each of its shape."""
    momenta, inverse = slots["momenta"], (slots["second"] + TINY).rsqrt()
    rows, cols = slots["rows"], slots["cols"]
    axes = two_largest(grad.shape)
    if axes is None:
        factored = (rows + TINY).rsqrt()  # [3, *X]
    else:
        mean = rows.mean(axes[0] + 1, keepdim=True)  # axis 0 holds the decays
        factored = (rows / (mean + TINY) + TINY).rsqrt() * (cols + TINY).rsqrt()
    wide = [
        each.expand(3, *grad.shape)
        for each in (rows, cols, (rows + TINY).rsqrt(), (cols + TINY).rsqrt())
    ]
    stacks = [
        momenta,
        slots["second"],
        momenta * inverse,
        inverse,
        factored * grad,
        *wide,
        factored * momenta,
    ]
    return [grad, param, *(column for stack in stacks for column in stack)]
