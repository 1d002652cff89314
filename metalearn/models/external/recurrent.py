"""torch's recurrent layers step by step, with the same parameter names.

The fused kernels have no vmap and no second derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from metalearn.errors import ConfigError

Carry = tuple[Tensor, ...]  # (h,) or (h, c), each [B, H]


def step(mode: str, gates: Tensor, carry: Carry, weight: Tensor, bias: Tensor | None) -> Carry:
    """One step of a cell whose input gates W x + b are given: [B, gates * H], carry -> carry."""
    if mode == "GRU":
        (xr, xz, xn), (hr, hz, hn) = (
            gates.chunk(3, -1),
            F.linear(carry[0], weight, bias).chunk(3, -1),
        )
        update = torch.sigmoid(xz + hz)
        new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return ((1 - update) * new + update * carry[0],)
    total = gates + F.linear(carry[0], weight, bias)
    if mode != "LSTM":
        return (torch.tanh(total) if mode == "RNN_TANH" else torch.relu(total),)
    i, f, g, o = total.chunk(4, -1)
    c = torch.sigmoid(f) * carry[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class UnrolledRNN(nn.RNNBase):
    """`forward` of nn.RNN, nn.LSTM and nn.GRU as a loop over time."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """[L, B, X] -> outputs and last state, as torch's.

        [B, L, X] with batch_first, [L, X] unbatched."""
        if isinstance(input, PackedSequence):
            text = "uses a PackedSequence, whose lengths cannot be batched over tasks: use padding"
            raise ConfigError((type(self).__name__, text))
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if self.batch_first and batched else x
        start = self._start(x, hx, batched)
        ways, last = 2 if self.bidirectional else 1, []
        for layer in range(self.num_layers):
            sides = []
            for way in range(ways):
                carry = tuple(part[layer * ways + way] for part in start)
                out, carry = self._scan(x, carry, f"l{layer}" + ("_reverse" if way else ""))
                sides.append(out)
                last.append(carry)
            x = torch.cat(sides, -1)
            if layer < self.num_layers - 1 and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
        x = x.transpose(0, 1) if self.batch_first and batched else x
        ends = tuple(torch.stack(part) for part in zip(*last, strict=True))
        if not batched:
            x, ends = x.squeeze(1), tuple(part.squeeze(1) for part in ends)
        return x, ends if self.mode == "LSTM" else ends[0]

    def _start(self, x: Tensor, hx: Any, batched: bool) -> Carry:
        """The first state, each part [layers * directions, B, H]."""
        if hx is not None:
            parts = hx if self.mode == "LSTM" else (hx,)
            return tuple(part if batched else part.unsqueeze(1) for part in parts)
        count = self.num_layers * (2 if self.bidirectional else 1)
        widths = [self.proj_size or self.hidden_size]
        widths += [self.hidden_size] if self.mode == "LSTM" else []
        return tuple(x.new_zeros(count, x.shape[1], width) for width in widths)

    def _scan(self, x: Tensor, carry: Carry, suffix: str) -> tuple[Tensor, Carry]:
        """One layer in one direction: [L, B, X] -> [L, B, H]."""

        def part(name: str) -> Tensor | None:
            return getattr(self, f"{name}_{suffix}", None)

        weight, bias, project = part("weight_hh"), part("bias_hh"), part("weight_hr")
        assert weight is not None
        backward = suffix.endswith("_reverse")
        gates = F.linear(x, part("weight_ih"), part("bias_ih"))  # type: ignore[arg-type]
        outs = []
        for gate in (gates.flip(0) if backward else gates).unbind(0):
            carry = step(self.mode, gate, carry, weight, bias)
            if project is not None:
                carry = (F.linear(carry[0], project), *carry[1:])
            outs.append(carry[0])
        out = torch.stack(outs)
        return out.flip(0) if backward else out, carry


class UnfusedCell(RNNCellBase):
    """`forward` of nn.RNNCell, nn.LSTMCell and nn.GRUCell."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """[B, X] or [X] -> the next state, as torch's."""
        mode = {4: "LSTM", 3: "GRU"}.get(self.weight_hh.shape[0] // self.hidden_size, "RNN")
        if mode == "RNN":
            mode = "RNN_TANH" if self.nonlinearity == "tanh" else "RNN_RELU"
        if hx is None:
            zero = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zero, zero) if mode == "LSTM" else zero
        gates = F.linear(input, self.weight_ih, self.bias_ih)
        carry = hx if mode == "LSTM" else (hx,)
        carry = step(mode, gates, carry, self.weight_hh, self.bias_hh)
        return carry if mode == "LSTM" else carry[0]
