"""A small MLP for every parameter, with Adafactor's features."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.learned_optimizers.rules.cells import init_mlp, mlp
from metalearn.learned_optimizers.rules.features import (
    TIMES,
    divide_by_rms,
    moving_averages,
    scaled_update,
    time_features,
)
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    LearnedRuleComponent,
    StepInfo,
    Theta,
    per_tensor_rule,
)
from metalearn.types import Key, Params, State

# Initial decays.
DECAYS = {"momentum": (0.9, 0.99, 0.999), "rms": (0.999,), "factor": (0.9, 0.99, 0.999)}
TINY = 1e-8


class AdafactorMLP(LearnedRuleComponent):
    """A small MLP applied to every parameter, with Adam and Adafactor statistics as input.

    39 features: g, p, m (3 decays), v, m / sqrt(v) (3), 1 / sqrt(v), g by Adafactor's factored
    second moments (3), their rows and columns (6), the inverse roots of these (6), m by the
    factored moments (3), each divided by its root mean square over the tensor; tanh(step / t - 1)
    at 11 scales.  (d, s) = mlp(features);  u = -step_size * d * e^(exponent * s) (Metz et al.
    2022, arXiv:2203.11860). The decays are learned too, as log(1 - decay) / 10. Moments are
    factored over a tensor's two largest dimensions (Shazeer & Stern 2018, arXiv:1804.04235); for a
    vector rows and columns are its moments themselves. The rule does not read the horizon.

    >>> rule = ml.learned_optimizers.AdafactorMLP().build()
    >>> theta = rule.init(ml.fold_in(0))
    >>> len(theta)
    9
    """

    name: Literal["adafactor_mlp"] = option("adafactor_mlp", "The rule.")
    hidden: int = option(4, "Width of a layer.", ge=1, le=1024)
    layers: int = option(2, "Number of hidden layers.", ge=1, le=8)
    step_size: float = option(1e-3, "Multiplier of the output step.", gt=0)
    exponent: float = option(
        1e-3, "Multiplier of the output that is the logarithm of the step's magnitude.", ge=0
    )

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        sizes = (28 + len(TIMES), *[self.hidden] * self.layers, 2)

        def init(key: Key) -> Theta:
            theta = {}
            for name, decays in DECAYS.items():
                logs = [math.log(1 - decay) / 10 for decay in decays]
                theta[f"decay.{name}"] = torch.tensor(logs, dtype=dtype, device=key.device)
            return {**theta, **init_mlp(key, sizes, dtype)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, info: StepInfo
        ) -> tuple[Tensor, State]:
            next_slots = moments(theta, grad, slots)
            x = divide_by_rms(columns(grad, param, next_slots))
            output = mlp(theta, x, info.time, len(sizes) - 1)
            update = scaled_update(output, self.step_size, self.exponent)
            return update.reshape(grad.shape), next_slots

        return LearnedRule(init, per_tensor_rule(start, move, time_features))


def largest_axes(shape: torch.Size) -> tuple[int, int] | None:
    """Return (second largest, largest) axis of a tensor; None for a vector or a scalar."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return order[-2], order[-1]


def start(param: Tensor) -> State:
    """Return zero slots: momenta [3, *X], second [1, *X], and the factored rows and columns.

    Rows [3, *X] have size 1 along the largest axis, columns along the second largest."""
    rows, cols = factors(torch.zeros_like(param))
    return {
        "momenta": param.new_zeros(3, *param.shape),
        "second": param.new_zeros(1, *param.shape),
        "rows": param.new_zeros(3, *rows.shape),
        "cols": param.new_zeros(3, *cols.shape),
    }


def factors(square: Tensor) -> tuple[Tensor, Tensor]:
    """Return means of a squared gradient along its largest and its second largest axis.

    For a vector both are the squared gradient itself."""
    axes = largest_axes(square.shape)
    if axes is None:
        return square, square
    return square.mean(axes[1], keepdim=True), square.mean(axes[0], keepdim=True)


def moments(theta: Theta, grad: Tensor, slots: State) -> State:
    """Return the slots after one more gradient."""
    decay = {name: (1 - (10 * theta[f"decay.{name}"]).exp()).clamp(0, 1) for name in DECAYS}
    square = grad * grad
    rows, cols = factors(square)
    return {
        "momenta": moving_averages(slots["momenta"], grad, decay["momentum"]),
        "second": moving_averages(slots["second"], square, decay["rms"]),
        "rows": moving_averages(slots["rows"], rows, decay["factor"]),
        "cols": moving_averages(slots["cols"], cols, decay["factor"]),
    }


def columns(grad: Tensor, param: Tensor, slots: State) -> list[Tensor]:
    """Return 28 features of one tensor, each of its shape."""
    momenta, second = slots["momenta"], slots["second"]
    rows, cols = slots["rows"], slots["cols"]
    inverse = (second + TINY).rsqrt()
    axes = largest_axes(grad.shape)
    if axes is None:
        factored = (rows + TINY).rsqrt()  # [3, *X]
    else:
        mean = rows.mean(axes[0] + 1, keepdim=True)  # axis 0 holds the decays
        factored = (rows / (mean + TINY) + TINY).rsqrt() * (cols + TINY).rsqrt()
    factors = (rows, cols, (rows + TINY).rsqrt(), (cols + TINY).rsqrt())
    expanded = [factor.expand(3, *grad.shape) for factor in factors]
    stacks = [momenta, second, momenta * inverse, inverse]
    stacks += [factored * grad, *expanded, factored * momenta]
    return [grad, param, *(column for stack in stacks for column in stack)]
