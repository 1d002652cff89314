"""Additions that the operator which makes one of both terms can do (kernels/), on CUDA.

A second derivative adds what comes through the first one: to each gradient of a convolution's
input, and of a normalisation's. These operators write sums at no cost."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from metalearn.executors.passes.fusion import VIEWS

ADD = torch.ops.aten.add.Tensor
# operators with the place of the argument to which each of their results is added
PRODUCERS: dict[str, tuple[int, ...]] = {
    "metalearn::conv_input": (5,),
    "metalearn::norm_relu_pool_grad": (8, 9),
}


def add_inside(graph: GraphModule) -> None:
    """Let the producer of a term of a sum add the other one, in place."""
    place = {node: number for number, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        if node.target is not ADD or node.kwargs or not all(map(_is_cuda, node.args)):
            continue
        for term, other in (node.args[::-1], node.args):
            found = _producer(term)
            if (
                found is not None
                and _form(other)[0] == _form(term)[0]
                and _form(term) == _form(node)
            ):
                producer, argument, result = found
                if place[other] < place[producer] and _give(
                    graph, producer, argument, result, other
                ):
                    node.replace_all_uses_with(term)
                    graph.graph.erase_node(node)
                    break


def _is_cuda(value: Any) -> bool:
    value = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(value, Tensor) and value.is_cuda


def _form(node: Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return value.shape, value.stride(), value.dtype


def _producer(term: Node) -> tuple[Node, int, Tensor] | None:
    """(operator, argument, result) where a term is read once and an operator may add to it."""
    number, source = 0, term
    while len(source.users) == 1 and source.target in VIEWS:
        source = source.args[0]  # type: ignore[assignment]
    result = source.meta["val"]
    if len(source.users) != 1:
        return None
    if source.target is operator.getitem:
        source, number = source.args  # type: ignore[assignment]
    name = source.target.name() if isinstance(source.target, torch._ops.OpOverload) else ""
    arguments = PRODUCERS.get(name, ())
    if number >= len(arguments) or source.kwargs:
        return None
    return source, arguments[number], result


def _give(graph: GraphModule, producer: Node, argument: int, result: Tensor, other: Node) -> bool:
    """Let `producer` add `other`, in the shape of its result; False where it adds something yet."""
    given = [*producer.args, *[None] * (argument + 1 - len(producer.args))]
    try:
        value = other.meta["val"].view(result.shape)
    except RuntimeError:  # another order of memory
        return False
    if given[argument] is not None or value.dtype != result.dtype:
        return False
    if other.meta["val"].shape != result.shape:
        with graph.graph.inserting_before(producer):
            target = torch.ops.aten.view.default
            other = graph.graph.call_function(target, (other, list(result.shape)))
        other.meta["val"] = value
    given[argument] = other
    producer.args = tuple(given)
    return True
