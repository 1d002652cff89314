"""The first layers of a network without parameters to learn, and the other layers after them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from metalearn.errors import ConfigError, did_you_mean
from metalearn.kernels.feature_cache import FrozenNetwork
from metalearn.types import Learner, Params


class Parts(NamedTuple):
    """A network in two: x -> first -> maps -> rest -> outputs. Layers keep their names."""

    first: nn.Module
    rest: nn.Module
    shape: tuple[int, ...]  # of the maps of one example


class _Tracer(fx.Tracer):
    """Records the calls of all modules but those that contain `layer`."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.layer.startswith(f"{module_qualified_name}.")


def split_after(body: nn.Module, layer: str, x: Tensor) -> Parts:
    """Return the layers up to `layer`, called once with x [B, *X], and copies of those after it.

    Raises ConfigError if there is no such layer, if the layers after it use anything else than its
    output, or if that is not one tensor."""
    names = [name for name, _ in body.named_modules() if name]
    if layer not in names:
        raise ConfigError(("", f"no layer {layer!r}; {did_you_mean(layer, names)}"))
    try:
        graph = _Tracer(layer).trace(body)
    except Exception as error:  # tracing fails in as many ways as there are networks
        raise ConfigError(("", f"the calls of the layers cannot be traced: {error}")) from error
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1:
        raise ConfigError(("", f"{layer} is called {len(calls)} times, not once"))
    first = _module(body, _up_to(graph, calls[0]))
    rest = _module(copy.deepcopy(body), _after(graph, calls[0]))
    with torch.no_grad():
        maps, expected = first(x), body(x)
    if not isinstance(maps, Tensor) or maps.dim() < 2 or len(maps) != len(x):
        raise ConfigError(("", f"the output of {layer} is not one tensor with a row per example"))
    with torch.no_grad():
        if not torch.equal(rest(maps), expected):
            raise ConfigError(("", f"the network after {layer} is not a function of its output"))
    return Parts(first, rest, tuple(maps.shape[1:]))


def _module(body: nn.Module, graph: fx.Graph) -> nn.Module:
    module = fx.GraphModule(body, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _up_to(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """Return the graph whose output is the node `last`."""
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node is last:
            break
    part.output(copies[last])
    return part


def _after(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """Return the graph from the output of the node `last` to that of `graph`."""
    part = fx.Graph()
    copies = {last: part.placeholder("maps")}
    follows = False

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            text = f"layers after {last.target} use the output of {node.target}, too"
            raise ConfigError(("", f"{text}: freeze up to an earlier or a later layer"))
        return copies[node]

    for node in graph.nodes:
        if node.op == "get_attr" or (follows and node.op != "placeholder"):
            copies[node] = part.node_copy(node, copied)
        follows = follows or node is last
    return part


class Maps(nn.Module):
    """Frozen layers: images [B, C, H, W] to their maps as one row each, [B, D]."""

    def __init__(self, prepare: Callable[[Tensor], Tensor], first: nn.Module) -> None:
        super().__init__()
        self.prepare, self.first = prepare, first

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.first(self.prepare(x))
        return maps.flatten(1)


class AfterMaps(nn.Module):
    """The other layers: rows [B, D] of maps to features [B, D']."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...], pool: Any) -> None:
        super().__init__()
        self.body, self.shape, self.pool = body, shape, pool

    def forward(self, rows: Tensor) -> Tensor:
        z: Tensor = self.pool(self.body(rows.unflatten(1, self.shape)))
        return z


def after_frozen(
    rest: Learner,
    network: FrozenNetwork,
    x_shape: tuple[int, ...],
    fixed: tuple[str, ...],
    module: Callable[[Params], Any],
) -> Learner:
    """Return the learner of images [B, *X] that is `rest` on the outputs of a frozen network.

    `fixed` are the names of the network's parameters. A method may compute its outputs once for
    each image of a task, and learn from them with `rest`."""

    # Statistics of batch normalisation are frozen or running, so that no context is used.
    def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return rest.features(params, network(x))

    def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return rest.apply(params, network(x))

    return rest._replace(
        features=features,
        apply=apply,
        stats=lambda params, x: rest.stats(params, network(x)),
        x_shape=x_shape,
        fixed=(*rest.fixed, *fixed),
        module=module,
        frozen=network,
        after_frozen=rest,
    )
