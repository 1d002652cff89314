"""A hyper-network of VeLO's form: an LSTM mixes small MLPs for every tensor."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.learned_optimizers.rules.cells import init_lstm, init_weight, lstm, zero_memory
from metalearn.learned_optimizers.rules.features import (
    constants,
    divide_by_rms,
    log_size,
    moving_averages,
    scaled_update,
)
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    LearnedRuleComponent,
    Theta,
    advance_clock,
    grads_in_order,
    init_clock,
)
from metalearn.rng import fold_in
from metalearn.tree import flatten, leaves, unflatten
from metalearn.types import Grads, Key, Params, State, UpdateRule, Updates

DECAYS = (0.9, 0.99)  # of the momenta; the second moment takes the last
PARAM_FEATURES, TENSOR_FEATURES = 6, 14


class Hyper(LearnedRuleComponent):
    """A per-tensor LSTM that mixes a bank of small MLPs applied to its parameters.

    Inputs of the LSTM for a tensor: logarithms of the sizes of g, p, m and v, the number of
    dimensions, changes of the loss, and the remaining fraction of the horizon; a mean over all
    tensors is added to each. From its output come mixing weights w (softmax) and a log step size r;
    (d, s) = mlp with weights sum_k w_k W_k on 6 features of each parameter;  u = -step_size
    e^r d e^(exponent * s). The form of VeLO (Metz et al. 2022, arXiv:2211.09760, section 3),
    smaller, with fewer features and other weights. The horizon has an effect: set it.

    >>> params = {"w": torch.zeros(3, 2)}
    >>> rule = ml.learned_optimizers.Hyper().build(like=params)
    >>> theta = rule.init(ml.fold_in(0))
    >>> len(theta)
    16
    """

    reads_loss: ClassVar[bool] = True

    name: Literal["hyper"] = option("hyper", "The rule.")
    hidden: int = option(32, "Width of the LSTM.", ge=1, le=4096)
    bank: int = option(8, "Number of MLPs that are mixed.", ge=1, le=1024)
    width: int = option(4, "Width of the two hidden layers of each MLP.", ge=1, le=256)
    step_size: float = option(1e-3, "Multiplier of the output step.", gt=0)
    exponent: float = option(
        1e-3, "Multiplier of the output that is the logarithm of the step's magnitude.", ge=0
    )

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        return LearnedRule(lambda key: self._init_theta(key, dtype), self._rule)

    def _init_theta(self, key: Key, dtype: torch.dtype) -> Theta:
        theta = init_lstm(key, self.hidden, self.hidden, 1, dtype)
        sizes = (PARAM_FEATURES, self.width, self.width, 2)
        shapes: dict[str, tuple[int, ...]] = {
            "own": (self.hidden, TENSOR_FEATURES),
            "common": (self.hidden, TENSOR_FEATURES),
            "mix": (self.bank, self.hidden),
            "rate": (1, self.hidden),
        }
        shapes |= {
            f"bank.{layer}": (self.bank, sizes[layer + 1], sizes[layer]) for layer in range(3)
        }
        for name, shape in shapes.items():
            theta[f"{name}.weight"] = init_weight(fold_in(key, name), shape, dtype)
            theta[f"{name}.bias"] = torch.zeros(shape[:-1], dtype=dtype, device=key.device)
        return theta

    def _rule(self, theta: Theta, horizon: Tensor | int) -> UpdateRule:
        def init(params: Any) -> State:
            values = leaves(params)
            return {
                **init_clock(params, horizon),
                "slots": [_init_slots(param) for param in values],
                "loss": values[0].new_zeros(len(DECAYS)),
                "lstm": zero_memory(values[0], len(values), self.hidden, 1),
            }

        def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
            values, structure = flatten(params)
            flat = grads_in_order(params, grads)
            pairs = zip(flat, state["slots"], strict=True)
            slots = [_update_slots(grad, tensor_slots) for grad, tensor_slots in pairs]
            losses, change = _loss_features(state, loss)
            remaining = (1 - state["count"] / state["horizon"]).clamp(0, 1)
            tensors = list(zip(flat, values, slots, strict=True))
            x = torch.stack([_tensor_features(*tensor, change, remaining) for tensor in tensors])
            mix, rate, memory = self._mix(theta, x, state["lstm"])
            updates = [
                (rate[index] * self._step(theta, mix[index], *tensor)).reshape(tensor[1].shape)
                for index, tensor in enumerate(tensors)
            ]
            next_state = {**advance_clock(state), "slots": slots, "loss": losses, "lstm": memory}
            return unflatten(updates, structure), next_state

        return UpdateRule(init, update)

    def _mix(self, theta: Theta, x: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """Map features [n, TENSOR_FEATURES] to (weights [n, bank], step sizes [n, 1], memory)."""
        common = (x @ theta["common.weight"].T + theta["common.bias"]).relu().mean(0)
        h, memory = lstm(theta, x @ theta["own.weight"].T + theta["own.bias"] + common, memory)
        mix = torch.softmax(h @ theta["mix.weight"].T + theta["mix.bias"], -1)
        return mix, (h @ theta["rate.weight"].T + theta["rate.bias"]).exp(), memory

    def _step(self, theta: Theta, mix: Tensor, grad: Tensor, param: Tensor, slots: State) -> Tensor:
        """Apply the MLP of one tensor to all of its parameters: [n]."""
        inverse = (slots["second"] + 1e-8).rsqrt()
        x = divide_by_rms([grad, param, *slots["momenta"], *(slots["momenta"] * inverse)])
        for layer in range(3):
            matrix, bias = (
                torch.tensordot(mix, theta[f"bank.{layer}.{part}"], 1)
                for part in ("weight", "bias")
            )
            x = (x.relu() if layer else x) @ matrix.T + bias
        return scaled_update(x, self.step_size, self.exponent)


def _init_slots(param: Tensor) -> State:
    momenta = param.new_zeros(len(DECAYS), *param.shape)
    return {"momenta": momenta, "second": torch.zeros_like(param)}


def _update_slots(grad: Tensor, slots: State) -> State:
    second = DECAYS[-1] * slots["second"] + (1 - DECAYS[-1]) * grad * grad
    momenta = moving_averages(slots["momenta"], grad, constants(DECAYS, grad))
    return {"momenta": momenta, "second": second}


def _loss_features(state: State, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Return (moving averages of the loss [2]; relative changes of it and of them [2])."""
    decays = constants(DECAYS, loss)
    losses = moving_averages(state["loss"], loss, decays)
    unbiased = losses / (1 - decays ** (state["count"] + 1))
    scale = unbiased.abs().mean() + 1e-8
    changes = torch.stack([loss - unbiased[0], unbiased[0] - unbiased[1]])
    return losses, torch.tanh(changes / scale)


def _tensor_features(
    grad: Tensor, param: Tensor, slots: State, change: Tensor, remaining: Tensor
) -> Tensor:
    """Return the features of one tensor: [TENSOR_FEATURES]."""
    tensors = (grad, param, *slots["momenta"], slots["second"])
    sizes = torch.stack([log_size(tensor.square().mean()) for tensor in tensors]) / 5
    axes = torch.stack([param.new_full((), float(param.dim() == dims)) for dims in (1, 2)])
    horizon_features = torch.stack(
        [torch.tanh(remaining * scale - 1) for scale in (1.0, 3.0, 10.0, 30.0, 100.0)]
    )
    return torch.cat([sizes, axes, change, horizon_features])
