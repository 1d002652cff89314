"""The operators of a pure function as a graph, recorded while it runs on fake tensors.

The graph is that of torch's `make_fx(function, tracing_mode="fake")`, which spends more than half
of its time on proxies of tensors and on symbols for sizes that are fixed here. A step of a learned
optimizer has thousands of operators, and is recorded in every trial of a tuning and for every seed.
What needs a symbol, as the size of a result depends on values, is left to `make_fx`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _make_graph_module
from torch.fx.experimental.proxy_tensor import disable_autocast_cache, make_fx, snapshot_fake
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import autograd_would_have_decomposed
from torch.utils.weak import WeakIdKeyDictionary

from metalearn.logger import log
from metalearn.scopes.recording import Recording
from metalearn.tree import leaves

_aten = torch.ops.aten
DEVICE = torch.ops.prim.device.default
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# a tensor made of numbers is a constant of the graph, which nothing may write to: it is copied
LIFT, COPY = _aten.lift_fresh.default, _aten.lift_fresh_copy.default
Function = Callable[..., Sequence[Tensor]]


def record(function: Function, tensors: Sequence[Tensor]) -> GraphModule:
    """The operators of `function` on tensors like these: (*tensors) -> results.

    RuntimeError where its course depends on their values."""
    try:
        return _record(function, tensors)
    except RuntimeError as error:  # what it cannot record, make_fx may, or has an error for
        log.debug(f"recorded by make_fx, not by Recorder: {type(error).__name__}: {error}")
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)


def _record(function: Function, tensors: Sequence[Tensor]) -> GraphModule:
    with torch._functorch.config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
        fake = detect_fake_mode(tensors) or FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake.from_tensor(tensor) for tensor in tensors]
    recorder = Recorder(fake, inputs)
    with fake, recorder, disable_autocast_cache():
        results = function(*inputs)
    return recorder.finish(results)


class Recorder(Recording):
    """Writes every operator down, and leaves its result to the mode of fake tensors below."""

    def __init__(self, fake: FakeTensorMode, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake, self._graph = fake, Graph()
        self._constants: dict[str, Tensor] = {}
        self._nodes = WeakIdKeyDictionary()  # of the tensors that are alive
        for place, value in enumerate(inputs, 1):
            self._track(value, self._graph.placeholder(f"inputs_{place}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE:
            return func(*args, **kwargs)
        if _is_composite(func) and autograd_would_have_decomposed(func, leaves((args, kwargs))):
            with self:
                return func.decompose(*args, **kwargs)
        if _reads_values(func) and not any(isinstance(one, FakeTensor) for one in args):
            raise RuntimeError(
                f"a step that is recorded has no values yet, and {func} asks for one"
            )
        # before the call, which may be in place
        arguments, named = map_aggregate((args, kwargs), self._argument)
        found = func(*args, **kwargs)
        target = COPY if func is LIFT else func
        self._track(found, self._graph.call_function(target, arguments, named))
        return found

    def finish(self, results: Sequence[Tensor]) -> GraphModule:
        """The graph that returns `results`."""
        self._graph.output(tuple(self._argument(value) for value in results))
        return _make_graph_module(self._constants, self._graph)

    def _argument(self, value: Any) -> Any:
        """The node of a tensor; what is no tensor as it is."""
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(value)
        if node is None:
            name = f"constant{len(self._constants)}"
            self._constants[name] = value
            node = self._nodes[value] = self._graph.get_attr(name)
            # the compiler takes the form of an input from here, and `hoist` makes this one
            is_fake = isinstance(value, FakeTensor)
            node.meta["val"] = value if is_fake else self._fake.from_tensor(value)
        return node

    def _track(self, found: Any, node: Node) -> None:
        """Remember of which node a result is."""
        if isinstance(found, Tensor):
            self._nodes[found] = node
            # as it is now: a view in place would change its shape
            node.meta["val"] = snapshot_fake(found)
        elif isinstance(found, (tuple, list)):
            for place, value in enumerate(found):
                if isinstance(value, Tensor):
                    self._track(value, self._graph.call_function(operator.getitem, (node, place)))


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, by a rule that autograd follows."""
    return COMPOSITE in func.py_kernels or func.has_kernel_for_dispatch_key(COMPOSITE)


@functools.cache
def _reads_values(func: Any) -> bool:
    return torch.Tag.data_dependent_output in func.tags
