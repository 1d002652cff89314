"""Arithmetic that changes nothing, taken out of a traced list: times one, plus zero, to the power
of one.

Derivatives are full of it: the seed of a gradient is a tensor of ones, that of a product's other
factor one of zeros. A value that is one number all over is followed through views and sums and
becomes a number, or goes altogether. The results are those of the longer list, bit for bit but for
the sign of a zero (0 + -0 is 0, and stays -0 here) and what is divided by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

_aten = torch.ops.aten
FILLED = {_aten.ones_like.default: 1.0, _aten.zeros_like.default: 0.0}
MOVED = {
    *(
        _aten.expand.default,
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.unsqueeze.default,
        _aten.t.default,
    ),
    *(_aten.transpose.int, _aten.permute.default, _aten.detach.default, _aten.clone.default),
}
MUL, DIV = {_aten.mul.Tensor, _aten.mul.Scalar}, {_aten.div.Tensor, _aten.div.Scalar}
ADD, SUB = {_aten.add.Tensor, _aten.add.Scalar}, {_aten.sub.Tensor, _aten.sub.Scalar}
POWER = _aten.pow.Tensor_Scalar
PAIRS = MUL | DIV | ADD | SUB


def fold_constants(graph: GraphModule) -> None:
    """Let the readers of what changes nothing read what it was made of; what nobody reads then
    stays in the list.
    """
    fills: dict[Node, float] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or (node.kwargs and node.target in PAIRS):
            continue
        number = _fill(node, fills)
        if number is not None:
            fills[node] = number
        elif node.target is POWER and node.args[1] == 1:
            _read_instead(node, node.args[0])
        elif node.target in PAIRS:
            _pair(node, fills)


def _fill(node: Node, fills: dict[Node, float]) -> float | None:
    """The number that a value holds everywhere, where that is known."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if node.target in FILLED:
        return FILLED[node.target]
    if node.target is POWER and node.args[1] == 0:
        return 1.0
    sources = node.all_input_nodes
    if not sources or not all(source in fills for source in sources):
        return None
    if node.target in MOVED:
        return fills[sources[0]]
    if node.target not in PAIRS:
        return None
    if (
        node.target in DIV and value.device.type != "cpu"
    ):  # other devices multiply by what was inverted
        return None

    def filled(source: Node) -> Tensor:
        like = source.meta["val"]
        return torch.full(
            (1,) if like.dim() else (), fills[source], dtype=like.dtype
        )  # 0-d ones promote nothing

    return float(node.target(*map_arg(node.args, filled)))


def _pair(node: Node, fills: dict[Node, float]) -> None:
    """A sum, difference, product or quotient of which one side is a number."""
    one, other = node.args[:2]
    if node.target in MUL | ADD and (one in fills or not isinstance(one, Node)):
        one, other = other, one
    number = fills.get(other) if isinstance(other, Node) else other
    if not isinstance(number, (int, float)):
        _unspread(node)
    elif number == (1 if node.target in MUL | DIV else 0):
        _read_instead(node, one)
    elif node.target is _aten.mul.Tensor and isinstance(other, Node) and same_layout(node, one):
        node.args = (one, number)


def _unspread(node: Node) -> None:
    """Operands as they are before they are spread to the shape of the other, which has it
    already.
    """
    for place, operand in enumerate(node.args[:2]):
        spread = isinstance(operand, Node) and operand.target is _aten.expand.default
        if spread and same_layout(node, node.args[1 - place]):
            node.update_arg(place, operand.args[0])  # type: ignore[union-attr]
            return


def _read_instead(node: Node, source: Any) -> None:
    if same_layout(node, source):
        node.replace_all_uses_with(source)


def same_layout(node: Any, source: Any) -> bool:
    """Whether two nodes hold tensors of one type, shape, layout and device, at the same place of
    their storage.
    """
    ours, theirs = (
        _layout(one.meta.get("val")) if isinstance(one, Node) else None for one in (node, source)
    )
    return ours is not None and ours == theirs


def _layout(value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, Tensor):
        return None
    turned = (value.is_conj(), value.is_neg())
    return value.dtype, value.shape, value.stride(), value.storage_offset(), value.device, *turned
