"""The patches that several convolutions of one input read, gathered once (kernels/gather_conv.py).

A convolution, its gradient for the weights, and both again in the second derivative read the same
patches. On CUDA a captured list of operations gathers them once where they are small: they are k k
/ s s times as large as the input, and stay in memory up to their last reader."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

CONVOLUTIONS = CONV, WEIGHT = "metalearn::conv", "metalearn::conv_weight"
LARGEST = 1 << 26  # bytes of patches that are shared
_metalearn = torch.ops.metalearn


def share_patches(graph: GraphModule) -> None:
    """Let convolutions of one input on CUDA read the same patches, in place."""
    readers: dict[tuple[Any, int, int], list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and _is_conv(node):
            x, other, stride = node.args[:3]
            size = node.args[3] if _name(node) == WEIGHT else other.meta["val"].shape[1]
            readers.setdefault((x, size, stride), []).append(node)
    for (x, size, stride), nodes in readers.items():
        shape = _shape(nodes[0], x, size)
        value = x.meta["val"]
        if len(nodes) == 1 or value.element_size() * math.prod(shape) > LARGEST:
            continue
        with graph.graph.inserting_before(nodes[0]):
            target = _metalearn.patches.default
            taken = graph.graph.call_function(target, (x, size, stride))
            taken.meta["val"] = value.new_empty(shape)
        for node in nodes:
            _read(graph, node, taken, size)


def _name(node: Node) -> str:
    return node.target.name() if isinstance(node.target, torch._ops.OpOverload) else ""


def _is_conv(node: Node) -> bool:
    if _name(node) not in CONVOLUTIONS or node.kwargs or not isinstance(node.args[0], Node):
        return False
    value = node.args[0].meta.get("val")
    return isinstance(value, Tensor) and value.is_cuda


def _shape(node: Node, x: Node, size: int) -> tuple[int, int, int]:
    """Of the patches: [G, C k k, B Ho Wo]."""
    source = node.args[1] if _name(node) == WEIGHT else node
    groups, batch, height, width, _ = source.meta["val"].shape  # type: ignore[union-attr]
    return groups, x.meta["val"].shape[-1] * size * size, batch * height * width


def _read(graph: GraphModule, node: Node, taken: Node, size: int) -> None:
    with graph.graph.inserting_before(node):
        if _name(node) == WEIGHT:
            target = _metalearn.conv_weight_of_patches.default
            made = graph.graph.call_function(target, (taken, node.args[1], size))
        else:
            _, *extents, _ = node.meta["val"].shape
            target = _metalearn.conv_of_patches.default
            made = graph.graph.call_function(target, (taken, node.args[1], *extents))
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)
