"""Trace a pure function once, with fake tensors, into an FX graph, and compile the graph.

recorder.py records the operations; simplify.py interprets the graph instead of compiling it.

`torch.compile` reads Python, and cannot read a custom derivative under torch.func; and it looks its
assumptions up again at every call, which for a small model takes longer than the work. A trace
needs neither: what runs inside a step is pure, so shapes and types are all that may change between
two calls, and each combination gets its own trace.

Constants become inputs. That lets torch's cache on disk keep the code (it refuses graphs that hold
tensors), and it keeps counters out of it: torch 2.13's CPU compiler goes wrong on products of a
large number and `arange` (see rng.py)."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.node import map_arg
from torch.utils import _pytree

from metalearn.executors.recorder import record


def _compiler_cache() -> Path:
    """Where compiled code is kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "metalearn" / "compiler"))
    )


# now: the compiler looks once, when it is imported, and tracing may import it
COMPILER_CACHE = _compiler_cache()
FlatFn = Callable[..., Sequence[Tensor]]
# bytes of constants up to which a function counts as computing its data rather than holding them
LIGHT = 1 << 20
_aten = torch.ops.aten
FILLS: dict[Any, float] = {
    _aten.ones_like.default: 1.0,
    _aten.zeros_like.default: 0.0,
    _aten.new_zeros.default: 0.0,
}


class Trace(NamedTuple):
    """A function as a flat list of operations."""

    graph: GraphModule  # (*inputs, *constants) -> results, all tensors
    constants: list[Tensor]
    structure: Any  # of the results
    output_leaves: list[Any]  # leaves of the results: the class Tensor for a tensor, else the value

    def unflatten(self, results: Sequence[Tensor]) -> Any:
        """The tree of the results."""
        tensors = iter(results)
        return _pytree.tree_unflatten(
            [next(tensors) if leaf is Tensor else leaf for leaf in self.output_leaves],
            self.structure,
        )


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled for every structure, shapes, types and devices of its arguments.

    Arguments and results are trees of tensors; anything else in an argument is a constant of the
    trace. Gradients are taken inside `function`, not through it."""
    return specialize_by_shape(function, compile_flat)


def specialize_by_shape(
    function: Callable[..., Any], backend: Callable[[Trace, list[Tensor]], FlatFn]
) -> Callable[..., Any]:
    """`function` traced for every combination of shapes.

    Each trace is made callable on flat inputs by `backend`.

    `.at(*tensors)` gives the callable for tensors like these, which looks nothing up: for loops
    (inner/stepwise.py). `.find(*args)` gives the trace, that callable and the flat arguments."""
    cache: dict[Any, tuple[Trace, FlatFn]] = {}

    def find(args: tuple[Any, ...]) -> tuple[Trace, FlatFn, list[Tensor]]:
        leaves, structure = _pytree.tree_flatten(args)
        tensors = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
        first: dict[int, int] = {}  # one tensor given twice is one input of the trace
        same = [first.setdefault(id(tensor), place) for place, tensor in enumerate(tensors)]
        key = (structure, *same, *(_kind(leaf) for leaf in leaves))
        entry = cache.get(key)
        if entry is None:
            with _trace_lock, torch.no_grad(), uncollected():
                if key in cache:  # another thread has traced it in the meantime
                    return *cache[key], tensors
                traced = trace(function, *args)
                entry = cache[key] = traced, backend(traced, tensors)
        return *entry, tensors

    def call(*args: Any) -> Any:
        traced, flat, tensors = find(args)
        return traced.unflatten(flat(*tensors))

    call.at = lambda *args: find(args)[1]  # type: ignore[attr-defined]
    call.find = lambda *args: find(args)  # type: ignore[attr-defined]
    return call


@contextmanager
def uncollected() -> Iterator[None]:
    """Context manager that disables Python's cyclic garbage collection.

    While operations are recorded it finds nothing, and takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_trace_lock = threading.RLock()  # tracing and compiling change what belongs to the process


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def trace(function: Callable[..., Any], *args: Any) -> Trace:
    """The operations of `function` on arguments like these.

    RuntimeError where its course depends on their values."""
    leaves, structure = _pytree.tree_flatten(args)
    tensors = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
    output_specs: list[Any] = []

    def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(inputs)
        whole = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        results, shape = _pytree.tree_flatten(function(*_pytree.tree_unflatten(whole, structure)))
        output_leaves = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in results]
        output_specs.append((shape, output_leaves))
        return tuple(leaf for leaf in results if isinstance(leaf, Tensor))

    # until it runs, the list is not written down as Python: many a list is shortened first
    with uncollected(), _use_lazy_graph_module(True):
        graph = record(flat, tensors)
        constants = hoist(graph)
    return Trace(graph, constants, *output_specs[-1])


def traceable(function: Callable[..., Any], *args: Any) -> Trace | None:
    """The trace of a function that can be traced and uses all that it is given; None for others."""
    try:
        traced = trace(function, *args)
    except (
        RuntimeError,
        TypeError,
        ValueError,
    ):  # its course depends on values: a source on the host, say
        return None
    inputs = [node for node in traced.graph.graph.nodes if node.op == "placeholder"]
    used = all(node.users for node in inputs[: len(inputs) - len(traced.constants)])
    return traced if used else None


def has_small_constants(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether a function is traceable and has only small constants.

    Such a function computes its results instead of reading them from stored data."""
    traced = traceable(function, *args)
    return traced is not None and sum(value.nbytes for value in traced.constants) <= LIGHT


def hoist(graph: GraphModule, *, fills: bool = False) -> list[Tensor]:
    """Turn the constants of a graph into further inputs, in place; returns them.

    A constant is a stored tensor, a counter (`arange`), a concatenation of constants, or what is
    computed from those alone. Plain fills stay, as the compiler folds them into its loops; with
    `fills` small ones are constants, too.
    """
    values, hoisted = _constants_of(graph, fills)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    after, constants = inputs[-1], list[Tensor]()
    first = sum(str(node.target).startswith("constant_") for node in inputs)
    for node in [node for node in values if node in hoisted]:
        outside = [user for user in node.users if user not in hoisted]
        if not outside or not isinstance(values[node], Tensor):
            continue
        with graph.graph.inserting_after(after):
            after = graph.graph.placeholder(f"constant_{first + len(constants)}")
        after.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(after, delete_user_cb=lambda user: user not in hoisted)
        constants.append(values[node].contiguous())
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return constants


def _constants_of(graph: GraphModule, fills: bool) -> tuple[dict[Node, Any], set[Node]]:
    """(the values that are known, which of them are constants)."""
    values: dict[Node, Any] = {}
    hoisted: set[Node] = set()
    written = _written_nodes(graph)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
            hoisted.add(node)
        elif fills and not _is_small(node):
            continue
        elif fills and node.target in FILLS and node not in written:
            values[node] = _filled(node)
            hoisted.add(node)
        elif (
            node not in written
            and _is_pure(node)
            and all(parent in values for parent in node.all_input_nodes)
        ):
            args, kwargs = (
                map_arg(operands, lambda parent: values[parent])
                for operands in (node.args, node.kwargs)
            )
            values[node] = node.target(*args, **kwargs)
            if fills or _counts(node) or any(parent in hoisted for parent in node.all_input_nodes):
                hoisted.add(node)
    return values, hoisted


def _is_small(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.nbytes <= LIGHT


def _filled(node: Node) -> Tensor:
    """What one of `FILLS` gives, whatever it is given."""
    like = node.meta["val"]
    filled = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return filled.fill_(FILLS[node.target])


def _is_pure(node: Node) -> bool:
    return (
        _is_operator(node)
        and not writes(node)
        and torch.Tag.nondeterministic_seeded not in node.target.tags  # type: ignore[union-attr]
        and not any(writes(user) for user in node.users)
    )


def _is_operator(node: Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def writes(node: Node) -> bool:
    """Whether it is an operator that changes one of its arguments."""
    return _is_operator(node) and node.target._schema.is_mutable  # type: ignore[union-attr]


def _written_nodes(graph: GraphModule) -> set[Node]:
    """The nodes whose memory an operator writes to, through views of them too."""
    written = set[Node]()
    pending: list[Any] = []
    for node in graph.graph.nodes:
        if writes(node):
            for index, argument in enumerate(node.target._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    argument_value = node.args[index] if index < len(node.args) else None
                    pending.append(node.kwargs.get(argument.name, argument_value))
    while pending:
        node = pending.pop()
        if isinstance(node, Node) and node not in written:
            written.add(node)
            pending.extend(node.all_input_nodes)
    return written


def _counts(node: Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in (
        torch.ops.aten.arange,
        torch.ops.aten.cat,
    )


def interpret_unchanged(traced: Trace, tensors: list[Tensor]) -> FlatFn:
    """The trace as it is, one operation after another."""
    del tensors
    graph, constants = traced.graph, traced.constants
    # the graph's code is written when it is first read; here the caller holds a lock, and threads
    # that would write it at once in their first calls spoil each other's
    _ = graph.code
    return lambda *inputs: graph(*inputs, *constants)


def compile_flat(traced: Trace, tensors: list[Tensor]) -> FlatFn:
    """The trace as machine code: torch's compiler behind a call without guards."""
    constants, patches = traced.constants, _patches(traced.graph, tensors)
    # half a second that eager runs need not wait for
    from torch._inductor import standalone_compile

    with _without_notes():
        flat = standalone_compile(
            traced.graph,
            [*tensors, *constants],
            # sizes are fixed; by default they are unknowns, at a high price
            dynamic_shapes="from_example_inputs",
            options={"config_patches": patches},
        )
    return lambda *inputs: flat(*inputs, *constants)


@contextmanager
def _without_notes() -> Iterator[None]:
    """Hide the compiler's warnings about operators that it calls instead of compiling, such as a
    linear solve: of how they are called, and that the code is not kept on disk. Nothing is wrong
    then. `TORCH_LOGS` shows them."""
    names = () if os.environ.get("TORCH_LOGS") else ("ir", "standalone_compile")
    loggers = [logging.getLogger(f"torch._inductor.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _patches(graph: GraphModule, tensors: list[Tensor]) -> dict[str, Any]:
    """Settings of the compiler for a CPU, measured on the sinusoid step: a quarter of the time to
    compile, and faster.

    One C++ file for the whole graph instead of one a loop, where all operators are torch's own; and
    no value computed anew for each of its readers when it took more than a few operations (the
    random numbers take about twenty)."""
    if any(tensor.is_cuda for tensor in tensors):
        return {}
    foreign = {getattr(node.target, "namespace", "aten") for node in graph.graph.nodes} - {
        "aten",
        "prims",
    }
    return {
        "cpp_wrapper": not foreign,
        "realize_opcount_threshold": 8,
        "realize_reads_threshold": 2,
    }
