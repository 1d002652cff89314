"""A traced list of operations without those that do nothing: what runs one operation after another
pays for each.

Expansions and views to the shape that is there, a transposition taken back, a view of a view, the
same operation on the same values twice, arithmetic that changes nothing (fold_constants.py):
results are those of the longer list."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import Graph, GraphModule, Node

from metalearn.executors.fold_constants import fold_constants, same_layout
from metalearn.executors.trace import Flat, Trace, writes

_aten = torch.ops.aten
VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default}
SAME = {_aten.expand.default, *VIEWS}
THROUGH = {_aten.detach.default, _aten.alias.default}


def interpret(traced: Trace, tensors: list[Tensor]) -> Flat:
    """The trace as a short list of operations, run one after another: no compiler, and no overhead
    of transforms.

    By torch's interpreter of such lists where it takes this one: it needs less than a microsecond
    for an operation, Python 2 to 3.
    """
    constants = traced.constants
    run = _interpreter(simplify_graph(traced.graph), [*tensors, *constants])
    return lambda *inputs: run(*inputs, *constants)


def _interpreter(graph: GraphModule, inputs: list[Tensor]) -> Flat:
    """`graph` without Python between its operations; as it is where torch (from some release on)
    cannot do that.

    Writing it down runs it once, so that one which writes into what it is given is left as it is.
    """
    if any(writes(node) for node in graph.graph.nodes):
        return cast(Flat, graph)
    try:
        listed = _listed(graph, inputs)
    except (
        Exception
    ):  # an operation that it does not know, or no interpreter: Python's way is always there
        return cast(Flat, graph)

    def run(*given: Tensor) -> Sequence[Tensor]:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # the operations as they are
            return listed(*given)

    return run


def _listed(graph: GraphModule, inputs: list[Tensor]) -> Flat:
    """`graph` in the form of torch's interpreter, as a function that owns it.

    `torch.jit.trace` would do, but files what it makes with the process, for good: 13 kB an
    operation, of 17,000."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # its interpreter gets no new features: none is needed here
        call: Any = graph.forward
        made, _ = torch._C._create_graph_by_tracing(
            call, tuple(inputs), lambda value: "", True, False
        )
        return cast(Flat, torch._C._create_function_from_graph("listed", made))


def simplify_graph(graph: GraphModule) -> GraphModule:
    """The graph with fewer operations (`graph` is used up); as it was where one of them writes into
    another's.
    """
    if any(writes(node) for node in graph.graph.nodes):
        return graph
    fold_constants(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            _shorten(node)
    graph.graph.eliminate_dead_code()
    shorter: Graph = fx_graph_cse(graph.graph)
    shorter.eliminate_dead_code()
    return GraphModule(graph, shorter)


def _shorten(node: Node) -> None:
    """Let the readers of a node that does nothing read what it reads."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return
    if node.target in THROUGH or (node.target in SAME and same_layout(node, source)):
        node.replace_all_uses_with(source)
    elif node.target is _aten.transpose.int and _undone(node, source):
        node.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
    elif node.target in VIEWS and source.target in VIEWS and _contiguous(source.args[0]):
        node.args = (source.args[0], *node.args[1:])


def _undone(node: Node, source: Node) -> bool:
    value = _value(source)
    if (
        source.target is not _aten.transpose.int
        or value is None
        or not isinstance(source.args[0], Node)
    ):
        return False
    dims = [sorted(int(dim) % value.dim() for dim in one.args[1:3]) for one in (node, source)]  # type: ignore[arg-type]
    return dims[0] == dims[1]


def _contiguous(source: Any) -> bool:
    value = _value(source) if isinstance(source, Node) else None
    return value is not None and value.is_contiguous()


def _value(node: Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None
