"""Small networks for use inside update rules.

torch.nn's recurrent layers count no FLOPs and do not run under vmap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.learned_optimizers.rules.learned_rule import Theta
from metalearn.rng import fold_in, normal
from metalearn.types import Key

Memory = tuple[Tensor, Tensor]  # (h, c) of one layer: [n, H] both


def init_weight(key: Key, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Sample normal weights with variance 1 / fan-in: [..., out, in]."""
    return normal(key, shape, dtype) / math.sqrt(shape[-1])


def init_mlp(key: Key, sizes: Sequence[int], dtype: torch.dtype) -> Theta:
    """Layers sizes[0] -> ... -> sizes[-1]: `mlp.i.weight` [out, in], `mlp.i.bias` [out]."""
    theta: Theta = {}
    for layer, (fan_in, out) in enumerate(itertools.pairwise(sizes)):
        name = f"mlp.{layer}"
        theta[f"{name}.weight"] = init_weight(fold_in(key, name), (out, fan_in), dtype)
        theta[f"{name}.bias"] = torch.zeros(out, dtype=dtype, device=key.device)
    return theta


def mlp(theta: Theta, x: Tensor, shared: Tensor, layers: int) -> Tensor:
    """ReLU layers on features of each coordinate, x [n, F], and shared ones [G]: [n, out].

    The first weight is [out, F + G]; the shared part is multiplied once, not n times."""
    features = x.shape[-1]
    for layer in range(layers):
        matrix, bias = theta[f"mlp.{layer}.weight"], theta[f"mlp.{layer}.bias"]
        if layer == 0:
            x = x @ matrix[:, :features].T + (matrix[:, features:] @ shared + bias)
        else:
            x = x.relu() @ matrix.T + bias
    return x


def init_lstm(key: Key, inputs: int, hidden: int, layers: int, dtype: torch.dtype) -> Theta:
    """`lstm.i.weight` [4H, in + H] and `lstm.i.bias` [4H].

    The bias of the forget gate is 1 (Jozefowicz et al. 2015)."""
    theta: Theta = {}
    for layer in range(layers):
        name, fan_in = f"lstm.{layer}", (hidden if layer else inputs) + hidden
        theta[f"{name}.weight"] = init_weight(fold_in(key, name), (4 * hidden, fan_in), dtype)
        gates = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=dtype, device=key.device)
        theta[f"{name}.bias"] = gates.repeat_interleave(hidden)
    return theta


def zero_memory(like: Tensor, rows: int, hidden: int, layers: int) -> list[Memory]:
    """Return the initial memory: zeros [n, H], of the dtype and device of `like`."""
    return [(like.new_zeros(rows, hidden), like.new_zeros(rows, hidden)) for _ in range(layers)]


def lstm(theta: Theta, x: Tensor, memory: list[Memory]) -> tuple[Tensor, list[Memory]]:
    """One step of stacked LSTM layers: x [n, in] -> h [n, H], and the new memory.

    i, f, o = sigmoid, c~ = tanh of W (x, h) + b;  c <- f c + i c~;  h <- o tanh(c) (Hochreiter &
    Schmidhuber 1997; Gers et al. 2000)"""
    next_memory: list[Memory] = []
    for layer, (h, c) in enumerate(memory):
        matrix, bias = theta[f"lstm.{layer}.weight"], theta[f"lstm.{layer}.bias"]
        gates = torch.cat([x, h], -1) @ matrix.T + bias
        input_gate, forget_gate, output_gate, candidate = gates.chunk(4, -1)
        c = forget_gate.sigmoid() * c + input_gate.sigmoid() * candidate.tanh()
        x = output_gate.sigmoid() * c.tanh()
        next_memory.append((x, c))
    return x, next_memory
