"""The executor `traced` (`interpret_function`): trace, simplify the graph, interpret it.

trace.py traces. Operations that do nothing are removed, as an interpreter has a cost for each:
expansions and views to the shape that is there, a transposition taken back, a view of a view, the
same operation on the same values twice; and arithmetic with constants that changes nothing (times
one, plus zero, to the power of one), of which derivatives are full: the seed of a gradient is a
tensor of ones, that of a product's other factor one of zeros. That takes 9 to 13 % of the
operations of a sinusoid step. Pieces that are joined again are in rejoin.py. Results are those of
the longer list, bit for bit but for the sign of a zero (0 + -0 is 0, and stays -0 here) and what is
divided by it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from metalearn.executors.passes.fusion import fuse
from metalearn.executors.passes.rejoin import rejoin
from metalearn.executors.passes.shared_patches import share_patches
from metalearn.executors.passes.sums import add_inside
from metalearn.executors.trace import FlatFn, Trace, hoist, specialize_by_shape, writes

_aten = torch.ops.aten
VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default}
SAME = {_aten.expand.default, *VIEWS}
THROUGH = {_aten.detach.default, _aten.alias.default}
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


def interpret_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced for every combination of shapes and interpreted without a compiler."""
    return specialize_by_shape(function, interpret_simplified)


def interpret_simplified(traced: Trace, tensors: list[Tensor]) -> FlatFn:
    """Return an interpreter of the simplified graph, which runs one operation after another.

    There is no compiler, and no overhead of transforms. It is TorchScript's interpreter if that
    supports the graph: less than a microsecond per operation, instead of 2 to 3 in Python.
    """
    constants = traced.constants
    run = _interpreter(simplify_graph(traced.graph), [*tensors, *constants])
    return lambda *inputs: run(*inputs, *constants)


def interpret_shortened(traced: Trace, tensors: list[Tensor], *, exact: bool = False) -> FlatFn:
    """Return the shortened graph, run in Python: for a CUDA capture, which happens once."""
    del tensors
    graph, constants = shorten_for_capture(traced, exact=exact), traced.constants
    return lambda *inputs: graph(*inputs, *constants)


def shorten_for_capture(traced: Trace, *, exact: bool = False) -> GraphModule:
    """`simplify_graph` in few kernels; the graph of `traced` is used up.

    Small fills are computed here, once: they are added to the constants of `traced`. `exact` leaves
    out what rounds otherwise than the operations one by one."""
    graph = simplify_graph(traced.graph)
    if not any(writes(node) for node in graph.graph.nodes):
        traced.constants.extend(hoist(graph, fills=True))
        share_patches(graph)
        if not exact:
            add_inside(graph)
            fuse(graph)
        graph.recompile()
    return graph


def _interpreter(graph: GraphModule, inputs: list[Tensor]) -> FlatFn:
    """`graph` without Python between its operations; as it is where torch (from some release on)
    cannot do that.

    Writing it down runs it once, so that one which writes into what it is given is left as it is.
    """
    if any(writes(node) for node in graph.graph.nodes):
        return cast(FlatFn, graph)
    try:
        function = _listed(graph, inputs)
    except Exception:
        _copy_in_views(graph)
        try:
            function = _listed(graph, inputs)
        except Exception:  # an operation that it does not know, or no interpreter: Python's way
            return cast(FlatFn, graph)  # is always there

    def run(*args: Tensor) -> Sequence[Tensor]:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # the operations as they are
            return function(*args)

    return run


def _copy_in_views(graph: GraphModule) -> None:
    """Let views copy where they must: a convolution's gradient may have other strides than those
    that were recorded on fake tensors.
    """
    for node in graph.graph.nodes:
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
    graph.recompile()


def _listed(graph: GraphModule, inputs: list[Tensor]) -> FlatFn:
    """`graph` in the form of TorchScript's interpreter, as a function that owns it.

    `torch.jit.trace` would do, but files what it makes with the process, for good: 13 kB an
    operation, of 17,000."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # its interpreter gets no new features: none is needed here
        call: Any = graph.forward
        traced_graph, _ = torch._C._create_graph_by_tracing(
            call, tuple(inputs), lambda value: "", True, False
        )
        return cast(FlatFn, torch._C._create_function_from_graph("listed", traced_graph))


def simplify_graph(graph: GraphModule) -> GraphModule:
    """The graph with fewer operations; unchanged where one of them writes into another's.

    `graph` is used up.
    """
    if any(writes(node) for node in graph.graph.nodes):
        return graph
    fold_constants(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            _shorten(node)
    graph.graph.eliminate_dead_code()
    rejoin(graph)
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


def fold_constants(graph: GraphModule) -> None:
    """Let the readers of an operation that changes nothing read its argument.

    Operations that nobody reads then stay in the list.
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
    """Whether two nodes hold tensors of one type, shape, layout, device and storage offset."""
    ours, theirs = (
        _layout(one.meta.get("val")) if isinstance(one, Node) else None for one in (node, source)
    )
    return ours is not None and ours == theirs


def _layout(value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, Tensor):
        return None
    turned = (value.is_conj(), value.is_neg())
    return value.dtype, value.shape, value.stride(), value.storage_offset(), value.device, *turned
