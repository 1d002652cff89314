"""A network split after one layer: frozen layers up to it, layers to learn after it."""

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
    """A network split in two: x -> first -> maps -> rest -> outputs. Layers keep their names."""

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
    """Return copies of the layers up to `layer` and of those after it.

    `x` [B, *X] are two or more examples, on which the parts are compared with `body`. Raises
    ConfigError if there is no such layer, if the layers after it use anything else than its output,
    if both parts share a tensor, or if what the first part computes for an example depends on the
    others."""
    _require_layer(body, layer)
    body = copy.deepcopy(body)  # tracing stores constants in it
    try:
        graph = _Tracer(layer).trace(body)
    except Exception as error:  # tracing fails in as many ways as there are networks
        raise ConfigError(("", f"the calls of the layers cannot be traced: {error}")) from error
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if not calls:
        raise ConfigError(("", f"{layer} is not called itself: choose a layer in it, or another"))
    if len(calls) > 1:
        raise ConfigError(("", f"{layer} is called {len(calls)} times, not once"))
    first = fx.GraphModule(body, _up_to(graph, calls[0]))
    rest = fx.GraphModule(body, _after(graph, calls[0]))
    _refuse_shared(first, rest, layer)
    with torch.no_grad():
        shape = _check_equal(first, rest, body, layer, x)
    return Parts(first, rest, shape)


def _require_layer(body: nn.Module, layer: str) -> None:
    owner, place = body, "the network"
    for name in layer.split("."):
        children = dict(owner.named_children())
        if name not in children:
            valid = did_you_mean(name, children) if children else "it has no layers"
            raise ConfigError(("", f"no layer {name!r} in {place}; {valid}"))
        owner, place = children[name], name if owner is body else f"{place}.{name}"


def _check_equal(
    first: nn.Module, rest: nn.Module, body: nn.Module, layer: str, x: Tensor
) -> tuple[int, ...]:
    """Return the shape of the maps of one example if the parts compute what the network does."""
    maps, expected = first(x.clone()), body(x.clone())
    if not isinstance(maps, Tensor) or maps.dim() < 2 or len(maps) != len(x):
        raise ConfigError(("", f"the output of {layer} is not one tensor with a row per example"))
    if not are_close(rest(maps.clone()), expected):
        raise ConfigError(("", f"the network after {layer} is not a function of its output"))
    if not are_close(first(x[:1].clone()), maps[:1]):
        text = "compute other outputs for an example if others are in its batch"
        raise ConfigError(("", f"the layers up to {layer} {text}"))
    return tuple(maps.shape[1:])


def are_close(a: Any, b: Any) -> bool:
    """Return whether outputs are equal but for the order of sums."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def _refuse_shared(first: nn.Module, rest: nn.Module, layer: str) -> None:
    """Raise ConfigError if both parts have a tensor, as one of them would be frozen."""
    tensors = {id(value): name for name, value in _tensors(first)}
    shared = [name for name, value in _tensors(rest) if id(value) in tensors]
    if shared:
        text = f"{shared[0]} is used before and after {layer}, so it cannot be frozen in one place"
        raise ConfigError(("", text))


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _up_to(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """Return the graph whose output is the node `last`."""
    part, copies, needed = fx.Graph(), dict[fx.Node, fx.Node](), _sources(last, None)
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[last])
    return part


def _after(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """Return the graph from the output of the node `last` to that of `graph`."""
    part, needed = fx.Graph(), _sources(graph.output_node(), last)
    copies = {last: part.placeholder("maps")}
    nodes = list(graph.nodes)
    before = nodes[: nodes.index(last)]

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            names = {"call_module": f"{node.target}", "placeholder": "the input of the network"}
            text = f"layers after {last.target} also use {names.get(node.op, node.name)}"
            raise ConfigError(("", f"{text}: choose an earlier or a later layer"))
        return copies[node]

    for node in nodes:
        is_after = node is not last and node not in before
        if node in needed and (is_after or node.op == "get_attr"):
            copies[node] = part.node_copy(node, copied)
    return part


def _sources(node: fx.Node, stop: fx.Node | None) -> set[fx.Node]:
    """Return the node and all that it is computed from, up to `stop`."""
    found, left = set[fx.Node](), [node]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += [] if one is stop else one.all_input_nodes
    return found


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
        maps = rows.unflatten(1, self.shape).clone()  # the layers may change them in place
        z: Tensor = self.pool(self.body(maps))
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
