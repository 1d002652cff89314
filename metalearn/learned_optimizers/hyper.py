"""A hyper-network: an LSTM for every tensor that mixes small perceptrons for its parameters (VeLO's
form).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.learned_optimizers.cells import blank, lstm, start_lstm, weight
from metalearn.learned_optimizers.features import by_rms, constants, logged, rolling
from metalearn.learned_optimizers.learned import LearnedRule, Theta, advanced, clock, in_order_of
from metalearn.learned_optimizers.mlp import stride
from metalearn.rng import fold_in
from metalearn.tree import flatten, leaves, unflatten
from metalearn.types import Grads, Key, Params, State, UpdateRule, Updates

DECAYS = (0.9, 0.99)  # of the momenta; the second moment takes the last
SEEN, TOLD, LEFT = (
    6,
    14,
    5,
)  # features of a parameter, of a tensor, and those of the time left among the latter


class Hyper(Component):
    """An LSTM for every tensor that mixes a bank of small perceptrons into one for the tensor's
    parameters.

    Of a tensor the LSTM is told logarithms of the sizes of g, p, m and v, its number of dimensions,
    how the loss changes, and what share of the horizon is left; a mean over all tensors goes to
    each. From its output come mixing weights w (softmax) and a log step size r;  (d, s) =
    perceptron of weights sum_k w_k W_k on 6 features of each parameter;  u = -step_size e^r d
    e^(exponent * s). The form of VeLO (Metz et al. 2022, arXiv:2211.09760, section 3), smaller,
    with fewer features, and not its weights. The horizon acts: state it."""

    reads_loss: ClassVar[bool] = True

    name: Literal["hyper"] = option("hyper", "the rule")
    hidden: int = option(32, "width of the LSTM", ge=1, le=4096)
    bank: int = option(8, "perceptrons that are mixed", ge=1, le=1024)
    width: int = option(4, "width of each of their two hidden layers", ge=1, le=256)
    step_size: float = option(1e-3, "factor of a step", gt=0)
    exponent: float = option(1e-3, "factor of the logarithm of a step's size", ge=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""
        return LearnedRule(lambda key: self._start(key, dtype), self._rule)

    def _start(self, key: Key, dtype: torch.dtype) -> Theta:
        theta = start_lstm(key, self.hidden, self.hidden, 1, dtype)
        sizes = (SEEN, self.width, self.width, 2)
        shapes: dict[str, tuple[int, ...]] = {
            "own": (self.hidden, TOLD),
            "common": (self.hidden, TOLD),
        }
        shapes |= {"mix": (self.bank, self.hidden), "rate": (1, self.hidden)}
        shapes |= {
            f"bank.{layer}": (self.bank, sizes[layer + 1], sizes[layer]) for layer in range(3)
        }
        for name, shape in shapes.items():
            theta[f"{name}.weight"] = weight(fold_in(key, name), shape, dtype)
            theta[f"{name}.bias"] = torch.zeros(shape[:-1], dtype=dtype, device=key.device)
        return theta

    def _rule(self, theta: Theta, horizon: Tensor | int) -> UpdateRule:
        def init(params: Any) -> State:
            values = leaves(params)
            slots = [_slots(param) for param in values]
            shared = {
                "loss": values[0].new_zeros(len(DECAYS)),
                "lstm": blank(values[0], len(values), self.hidden, 1),
            }
            return {**clock(params, horizon), "slots": slots, **shared}

        def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
            values, structure = flatten(params)
            flat = in_order_of(params, grads)
            slots = [_moved(grad, kept) for grad, kept in zip(flat, state["slots"], strict=True)]
            losses, change = _loss(state, loss)
            left = (1 - state["count"] / state["horizon"]).clamp(0, 1)
            each = zip(flat, values, slots, strict=True)
            told = torch.stack(
                [_told(grad, param, kept, change, left) for grad, param, kept in each]
            )
            common = (told @ theta["common.weight"].T + theta["common.bias"]).relu().mean(0)
            h, memory = lstm(
                theta, told @ theta["own.weight"].T + theta["own.bias"] + common, state["lstm"]
            )
            mix = torch.softmax(
                h @ theta["mix.weight"].T + theta["mix.bias"], -1
            )  # [n tensors, bank]
            rate = (h @ theta["rate.weight"].T + theta["rate.bias"]).exp()  # [n tensors, 1]
            updates = [
                rate[number]
                * self._step(theta, mix[number], flat[number], values[number], slots[number])
                for number in range(len(values))
            ]
            shaped = [
                update.reshape(value.shape) for update, value in zip(updates, values, strict=True)
            ]
            return unflatten(shaped, structure), {
                **advanced(state),
                "slots": slots,
                "loss": losses,
                "lstm": memory,
            }

        return UpdateRule(init, update)

    def _step(self, theta: Theta, mix: Tensor, grad: Tensor, param: Tensor, slots: State) -> Tensor:
        """The perceptron of one tensor on all of its parameters: [n]."""
        inverse = (slots["second"] + 1e-8).rsqrt()
        x = by_rms([grad, param, *slots["momenta"], *(slots["momenta"] * inverse)])
        for layer in range(3):
            matrix, bias = (
                torch.tensordot(mix, theta[f"bank.{layer}.{part}"], 1)
                for part in ("weight", "bias")
            )
            x = (x.relu() if layer else x) @ matrix.T + bias
        return stride(x, self.step_size, self.exponent)


def _slots(param: Tensor) -> State:
    return {
        "momenta": param.new_zeros(len(DECAYS), *param.shape),
        "second": torch.zeros_like(param),
    }


def _moved(grad: Tensor, slots: State) -> State:
    second = DECAYS[-1] * slots["second"] + (1 - DECAYS[-1]) * grad * grad
    return {"momenta": rolling(slots["momenta"], grad, constants(DECAYS, grad)), "second": second}


def _loss(state: State, loss: Tensor) -> tuple[Tensor, Tensor]:
    """(moving averages of the loss [2]; how it and they changed, in units of their size [2])."""
    decays = constants(DECAYS, loss)
    losses = rolling(state["loss"], loss, decays)
    even = losses / (1 - decays ** (state["count"] + 1))
    scale = even.abs().mean() + 1e-8
    return losses, torch.tanh(torch.stack([loss - even[0], even[0] - even[1]]) / scale)


def _told(grad: Tensor, param: Tensor, slots: State, change: Tensor, left: Tensor) -> Tensor:
    """Features of one tensor: [TOLD]."""
    first, last = slots["momenta"]
    sizes = (
        torch.stack(
            [logged(each.square().mean()) for each in (grad, param, first, last, slots["second"])]
        )
        / 5
    )
    axes = torch.stack([param.new_full((), float(param.dim() == number)) for number in (1, 2)])
    times = torch.stack([torch.tanh(left * scale - 1) for scale in (1.0, 3.0, 10.0, 30.0, 100.0)])
    return torch.cat([sizes, axes, change, times])
