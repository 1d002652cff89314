"""Concatenations of the pieces of one tensor, in a traced list of operations.

Rules that work on one vector of all parameters (inner/flat_params.py) split it for the network and
join it again. Here

    cat(split(x))             becomes  x
    cat(x_1 + y_1, ...)       becomes  x + cat(y_1, ...)    with x_i the pieces of x

which are the same bits in fewer operations: derivatives with respect to the pieces are sums of a
piece of the vector's derivative and of what came through the network."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
CAT, ADD, SLICE = _aten.cat.default, _aten.add.Tensor, _aten.slice.Tensor
SPLIT = _aten.split_with_sizes.default
SAME_ORDER = {
    *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
    *(_aten.detach.default, _aten.alias.default, _aten.clone.default),
}


def rejoin(graph: GraphModule) -> None:
    """Shorten the concatenations of `graph`, which writes into none of its values, in place."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is CAT and len(node.args[0]) > 1:
            _rejoin(graph, node)


def _rejoin(graph: GraphModule, node: Node) -> None:
    parts, dim = list(node.args[0]), _axis(node, node.args[1:])  # type: ignore[arg-type]
    if dim is None:
        return
    whole = _whole(parts, parts, dim)
    if whole is not None and _form(whole) == _form(node):
        node.replace_all_uses_with(whole)
        return
    sums = [_source(part) for part in parts]
    if not all(isinstance(one, Node) and one.target is ADD and not one.kwargs for one in sums):
        return
    for side in (0, 1):
        whole = _whole([one.args[side] for one in sums], parts, dim)
        others = [one.args[1 - side] for one in sums]
        if whole is None or _form(whole) != _form(node) or not _fit(others, sums):
            continue
        with graph.graph.inserting_before(node):
            flat = [_viewed(graph, *given) for given in zip(others, sums, parts)]
            rest = _new(graph, CAT, (flat, dim), node)
            pair = (whole, rest) if side == 0 else (rest, whole)
            node.replace_all_uses_with(_new(graph, ADD, pair, node))
        return


def _axis(node: Node, rest: Sequence[Any]) -> int | None:
    """The axis that `rest` begins with; None for a constant, which has no recorded form."""
    if not isinstance(node, Node) or not isinstance(node.meta.get("val"), Tensor):
        return None
    return int(rest[0] if rest else 0) % int(node.meta["val"].dim())


def _source(value: Any) -> Any:
    """What a value was viewed from: the same numbers in the same order."""
    while isinstance(value, Node) and value.target in SAME_ORDER:
        value = value.args[0]
    return value


def _whole(values: list[Any], parts: list[Any], dim: int) -> Node | None:
    """The tensor whose pieces along `dim`, shaped as `parts`, `values` were viewed from."""
    start, whole = 0, None
    for place, (value, part) in enumerate(zip(values, parts)):
        source = _source(value)
        found = _piece(source, place, dim)
        if found is None or source.meta["val"].shape != part.meta["val"].shape:
            return None
        if found[1] != start or found[0] is not (whole or found[0]):
            return None
        whole, start = found[0], start + int(source.meta["val"].shape[dim])
    return whole if whole is not None and start == whole.meta["val"].shape[dim] else None


def _piece(part: Any, place: int, dim: int) -> tuple[Node, int] | None:
    """(tensor, first place along `dim`) of a piece of it."""
    if not isinstance(part, Node) or not isinstance(part.meta.get("val"), Tensor):
        return None
    source: Any = part.args[0] if part.args else None
    if part.target is operator.getitem and source.target is SPLIT and part.args[1] == place:
        whole, sizes = source.args[:2]
        return (whole, sum(sizes[:place])) if _axis(whole, source.args[2:]) == dim else None
    if part.target is SLICE and len(part.args) == 4 and _axis(source, part.args[1:]) == dim:
        return source, int(part.args[2] or 0)  # type: ignore[arg-type]
    return None


def _fit(others: list[Any], sums: list[Node]) -> bool:
    """Whether the other terms have the sums' type, and a shape that spreads to theirs."""
    return all(
        isinstance(other, Node)
        and isinstance(other.meta.get("val"), Tensor)
        and other.meta["val"].dim() <= one.meta["val"].dim()
        and other.meta["val"].dtype == one.meta["val"].dtype
        for other, one in zip(others, sums)
    )


def _viewed(graph: GraphModule, value: Node, summed: Node, like: Node) -> Node:
    """A term of a sum in the shape of `like`, which is a view of the sum."""
    for target, shape in (
        (_aten.expand.default, summed.meta["val"].shape),
        (_aten.reshape.default, like.meta["val"].shape),
    ):
        if value.meta["val"].shape != shape:
            made = graph.graph.call_function(target, (value, list(shape)))
            made.meta["val"] = target(value.meta["val"], list(shape))
            value = made
    return value


def _new(graph: GraphModule, target: Any, args: tuple[Any, ...], like: Node) -> Node:
    made = graph.graph.call_function(target, args)
    made.meta["val"] = like.meta["val"]
    return made


def _form(node: Node) -> tuple[Any, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return value.shape, value.dtype, value.device, value.stride()
