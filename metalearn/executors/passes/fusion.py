"""Small operations that stand together in a captured list, as one Triton kernel (kernels/fused.py).

An outer rule and a cross entropy with its derivatives are two dozen operations on the same arrays.
A group is extended with consecutive operations of its shape until one has another shape; the
operations of a group run in the position of its last one, so none of them may read a value that
depends on the group through an operation outside it. Without Triton nothing is changed."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from metalearn.kernels.fused import COLUMN, NUMBER, ROW, WHOLE, Fused, Value
from metalearn.kernels.launch import WIDEST, available
from metalearn.machine import own_kernels

_aten = torch.ops.aten
VIEWS = {
    *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
    *(_aten.unsqueeze.default, _aten.squeeze.dims),
}
ELEMENTWISE: dict[Any, str] = {
    _aten.add.Tensor: "{0} + {1}",
    _aten.sub.Tensor: "{0} - {1}",
    _aten.mul.Tensor: "{0} * {1}",
    _aten.div.Tensor: "{0} / {1}",
    _aten.rsub.Scalar: "{1} - {0}",
    _aten.neg.default: "-{0}",
    _aten.exp.default: "tl.exp({0})",
    _aten.sqrt.default: "tl.sqrt({0})",
    _aten.pow.Scalar: "tl.exp({1} * {0})",  # with the logarithm of the base
    _aten.eq.Tensor: "{0} == {1}",
    _aten._to_copy.default: "{0}.to(ACC)",
}
SUM, SOFTMAX = _aten.sum.dim_IntList, _aten._log_softmax.default
SOFTMAX_GRAD, ARGMAX = _aten._log_softmax_backward_data.default, _aten.argmax.default
GATHER, SCATTER = _aten.gather.default, _aten.scatter_add.default
EQ, COPY, POWER = _aten.eq.Tensor, _aten._to_copy.default, _aten.pow.Scalar
# kinds of the operands, kind of the result, and the lines that make {out} of {0}, {1}, ...
IN_ROWS: dict[Any, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    SUM: ((WHOLE,), COLUMN, ("{out} = tl.sum(tl.where(there, {0}, 0), 1)[:, None]",)),
    SOFTMAX: (
        (WHOLE,),
        WHOLE,
        (
            "{out}_top = tl.max(tl.where(there, {0}, float('-inf')), 1)[:, None]",
            "{out}_sum = tl.sum(tl.where(there, tl.exp({0} - {out}_top), 0), 1)[:, None]",
            "{out} = {0} - {out}_top - tl.log({out}_sum)",
        ),
    ),
    SOFTMAX_GRAD: (
        (WHOLE, WHOLE),
        WHOLE,
        ("{out} = {0} - tl.exp({1}) * tl.sum(tl.where(there, {0}, 0), 1)[:, None]",),
    ),
    GATHER: (
        (WHOLE, COLUMN),
        COLUMN,
        ("{out} = tl.sum(tl.where(there & (place == {1}), {0}, 0), 1)[:, None]",),
    ),
    SCATTER: (
        (WHOLE, COLUMN, COLUMN),
        WHOLE,
        ("{out} = {0} + tl.where(place == {1}, {2}, 0)",),
    ),
    ARGMAX: (
        (WHOLE,),
        COLUMN,
        (
            "{out}_all = tl.where({0} == {0}, {0}, float('inf'))",  # NaN is the largest
            "{out}_all = tl.where(there, {out}_all, float('-inf'))",
            "{out} = tl.argmax({out}_all, 1)[:, None].to(tl.int64)",
        ),
    ),
}
# types of operands and result, float, int64 or bool; of all others float
TYPES: dict[Any, str] = {EQ: "iib", COPY: "bf", GATHER: "fif", SCATTER: "fiff", ARGMAX: "fi"}
DEVICE = "cuda"
LETTERS = {torch.int64: "i", torch.bool: "b"}
Shape = tuple[int, ...]
Operand = tuple[Node, Value] | float


def fuse(graph: GraphModule) -> None:
    """Let groups of operations of `graph`, which writes into no value, run as one, in place."""
    if not (available() and own_kernels()):
        return
    groups = [_Group()]
    for node in graph.graph.nodes:
        if node.op != "call_function" or groups[-1].takes(node):
            continue
        fresh = _Group()
        if fresh.takes(node):
            groups.append(fresh)
        else:
            groups[-1].look_at(node)
    moved: dict[Node, Node] = {}
    for place, group in enumerate(groups):
        if len(group.members) > 1:
            _rewrite(graph, group, f"fused_{place}", moved)


class _Group:
    """Operations whose results are whole, all of one shape, or columns or numbers beside these."""

    def __init__(self) -> None:
        self.shape: Shape = ()  # unknown while there are numbers alone
        self.types: set[torch.dtype] = set()  # one floating-point type
        self.given: dict[Node, Value] = {}
        self.members: dict[Node, Value] = {}
        self.views: set[Node] = set()  # of members
        self.after: set[Node] = set()  # what else depends on members
        self.lines: list[str] = []
        self.in_rows = False

    def takes(self, node: Node) -> bool:
        """Whether an operation fits; then it is a member."""
        if not _is_known(node):
            return False
        shape, types = self.shape or _shape(node), self.types | _float_types(node)
        kinds = _kinds(node, shape)
        if kinds is None or len(types) != 1:
            return False
        given = _operands(node)
        operands = [self._operand(*one) for one in zip(given, kinds, strict=False)]
        if any(one is None for one in operands):
            return False
        for one, value in zip(given, operands, strict=True):
            if isinstance(value, Value) and value.name == _name(one) and one not in self.members:
                self.given[one] = value
        self.shape, self.types = shape, types
        self.in_rows |= node.target in IN_ROWS or COLUMN in kinds
        self.members[node] = value = _value_of(node, kinds[-1])
        texts = [_text(one, value.kind) for one in operands if one is not None]
        self.lines += [line.format(*texts, out=value.name) for line in _lines(node)]
        return True

    def _operand(self, node: Any, kind: str) -> Value | float | None:
        """A member, also by a view of it, or an array that is given, or a number."""
        if not isinstance(node, Node):
            return float(node)
        source: Any = node
        while source in self.views:
            source = source.args[0]
        if source in self.members:
            return self.members[source] if self.members[source].kind == kind else None
        return None if node in self.after else _value_of(node, kind)

    def look_at(self, node: Node) -> None:
        """Find out whether a node outside of the group depends on it."""
        parents = node.all_input_nodes
        if any(parent in self.after for parent in parents):
            self.after.add(node)
        elif any(parent in self.members or parent in self.views for parent in parents):
            (self.views if node.target in VIEWS else self.after).add(node)

    def results(self) -> list[Node]:
        """The members that are read outside of the group."""
        return [node for node in self.members if self._leaves(node)]

    def _leaves(self, node: Node) -> bool:
        return any(
            self._leaves(user) if user in self.views else user not in self.members
            for user in node.users
        )


def _operands(node: Node) -> list[Any]:
    """The arrays of an operation on rows; arrays and numbers of an elementwise one."""
    if node.target in IN_ROWS:
        return [one for one in node.args if isinstance(one, Node)]
    return [math.log(node.args[0]), node.args[1]] if node.target is POWER else list(node.args)  # type: ignore[arg-type]


def _lines(node: Node) -> tuple[str, ...]:
    if node.target in IN_ROWS:
        return IN_ROWS[node.target][2]
    return (f"{{out}} = {ELEMENTWISE[node.target]}",)


def _text(operand: Value | float, made: str) -> str:
    """An operand in the lines of a result of a kind: numbers are computed in float64."""
    if isinstance(operand, float):
        return f"tl.full((), {operand!r}, {'tl.float64' if made == NUMBER else 'ACC'})"
    cast = operand.kind == NUMBER and made != NUMBER
    return f"{operand.name}.to(ACC)" if cast else operand.name


def _shape(node: Node) -> Shape:
    """Of the whole values that an operation alone would have."""
    like: Any = node.args[0] if node.target in IN_ROWS else node
    return tuple(like.meta["val"].shape)


def _value_of(node: Node, kind: str) -> Value:
    value = node.meta["val"]
    return Value(_name(node), kind, tuple(value.shape), value.dtype)


def _name(node: Node) -> str:
    return f"v_{node.name}"


def _is_known(node: Node) -> bool:
    """Whether a node is one of these operations, on contiguous arrays on CUDA of such types."""
    target = node.target
    if target not in IN_ROWS and target not in ELEMENTWISE:
        return False
    if set(node.kwargs) - ({"dtype"} if target is COPY else set()):
        return False
    if target in ELEMENTWISE and len(node.args) > 2:  # a factor of the second operand
        return False
    if target is POWER and not (isinstance(node.args[0], (int, float)) and node.args[0] > 0):
        return False
    numbers = [one for one in node.args if isinstance(one, float)]
    values: list[Any] = [one.meta.get("val") for one in (*node.all_input_nodes, node)]
    if not all(map(_is_plain, values)):
        return False
    letters = "".join(
        "f" if one.is_floating_point() else LETTERS.get(one.dtype, "?") for one in values
    )
    return all(map(math.isfinite, numbers)) and letters == TYPES.get(target, "f" * len(letters))


def _is_plain(value: Any) -> bool:
    there = isinstance(value, Tensor) and value.device.type == DEVICE
    return there and value.is_contiguous()


def _float_types(node: Node) -> set[torch.dtype]:
    values = [one.meta["val"] for one in (*node.all_input_nodes, node)]
    return {one.dtype for one in values if one.is_floating_point()}


def _kind(value: Tensor, shape: Shape) -> str | None:
    """What a value is beside whole values of a shape."""
    if not value.dim():
        return NUMBER
    if tuple(value.shape) == shape:
        return WHOLE
    if tuple(value.shape) == shape[-1:]:
        return ROW
    columns = {shape[:-1], (*shape[:-1], 1)} if len(shape) > 1 and shape[-1] <= WIDEST else set()
    return COLUMN if tuple(value.shape) in columns else None


def _kinds(node: Node, shape: Shape) -> list[str] | None:
    """The kinds of the operands and of the result; None where an operation does not fit."""
    made, operands = node.meta["val"], _operands(node)
    if node.target in IN_ROWS:
        of_operands, kind, _ = IN_ROWS[node.target]
        values = [one.meta["val"] for one in operands]
        fit = [_kind(one, shape) for one in (*values, made)] == [*of_operands, kind]
        return [*of_operands, kind] if fit and _is_along_rows(node, shape) else None
    kinds = [_kind(made, shape)]
    for place, one in enumerate(operands):
        value: Any = one.meta["val"] if isinstance(one, Node) else None
        kinds.insert(place, NUMBER if value is None else _kind(value, shape))
        spread = {(*made.shape[:-1], 1), tuple(made.shape[-1:])} if kinds[-1] == WHOLE else set()
        if kinds[place] != NUMBER and tuple(value.shape) not in {tuple(made.shape), *spread}:
            return None
    return None if None in kinds or kinds[-1] == ROW else kinds  # type: ignore[return-value]


def _is_along_rows(node: Node, shape: Shape) -> bool:
    """Whether an operation on rows is along the last axis, and reads one number for a row."""
    along: Any = next((one for one in node.args if not isinstance(one, Node)), None)
    axes = along if isinstance(along, (list, tuple)) else [along]
    if len(shape) < 2 or shape[-1] > WIDEST or None in axes:
        return False
    columns = [one.meta["val"].shape for one in _operands(node)[1:]] if _has_index(node) else []
    last = {int(axis) % len(shape) for axis in axes} == {len(shape) - 1}
    return last and all(tuple(one) == (*shape[:-1], 1) for one in columns)


def _has_index(node: Node) -> bool:
    return node.target in (GATHER, SCATTER)


def _rewrite(graph: GraphModule, group: _Group, name: str, moved: dict[Node, Node]) -> None:
    """Put a group's kernel in the place of its last member, and behind it what it moves past.

    `moved` has the new nodes of results of members, of earlier groups too."""
    results, nodes = group.results(), list(graph.graph.nodes)
    made = [group.members[node] for node in results]
    if not made or any(value.dtype == torch.bool for value in made):
        return
    inside = [node for node in nodes if node in group.members or node in group.views]
    inputs = [moved.get(node, node) for node in group.given]
    reference = _alone(graph, inputs, inside, results)
    given, rows = list(group.given.values()), group.in_rows
    graph.add_submodule(name, Fused(group.shape, given, made, group.lines, reference, in_rows=rows))
    last = list(group.members)[-1]
    with graph.graph.inserting_after(last):
        call = behind = graph.graph.call_module(name, tuple(inputs))
    for place, node in enumerate(results):
        with graph.graph.inserting_after(behind):
            behind = graph.graph.call_function(operator.getitem, (call, place))
        behind.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(behind)
        moved[node] = behind
    for node in reversed(inside):
        if not node.users:
            graph.graph.erase_node(node)
    for node in nodes[: nodes.index(last)]:
        if node in group.after or (node in group.views and node.users):
            behind.append(node)
            behind = node


def _alone(
    graph: GraphModule, given: list[Node], inside: list[Node], results: list[Node]
) -> GraphModule:
    """The operations `inside` as a function of what they are given."""
    alone, copies = Graph(), dict[Node, Node]()
    for node in given:
        copies[node] = alone.placeholder(node.name)
    for node in inside:
        copies[node] = alone.node_copy(node, lambda one: copies[one])
    alone.output(tuple(copies[node] for node in results))
    return GraphModule(graph, alone)
