"""A model that was meta-trained in learn2learn, as the meta of a method here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from torch import Tensor, nn

from metalearn.errors import ConfigError, did_you_mean
from metalearn.rng import fold_in
from metalearn.tree import STATS, trainable
from metalearn.types import Learner, Meta, Params

# of batch norm -> ours
BUFFERS = {"running_mean": "mean", "running_var": "var", "num_batches_tracked": ""}
KINDS = {1: "normalisation", 2: "linear", 4: "convolution"}
Layers = dict[str, Params]  # name of a layer -> its leaves


def from_learn2learn(
    model: nn.Module | Mapping[str, Tensor],
    learner: Learner,
    names: Mapping[str, str] | None = None,
) -> Meta:
    """The meta of MAML, ANIL or BOIL from a module or state dict; Meta-SGD with `lrs`.

    `model` is the module, learn2learn's MAML or MetaSGD around it, or the `state_dict` of either.
    Where its names are not ours, layers are paired in order within each kind (convolutions,
    normalisations, linear layers: the last one is the head); `names` {their layer: our layer} pairs
    the layers that it names. Shapes must be the same; what no shape shows (strides, pooling,
    activations) is the caller's to choose alike. A batch norm's running statistics are taken where
    the learner's normalisation is `running`, and left out elsewhere, where nothing reads them.
    Raises ConfigError with every layer that does not fit."""
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    rates = [
        state.pop(key) for key in sorted((k for k in state if k.startswith("lrs.")), key=_number)
    ]
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    like, _ = trainable(learner.init(fold_in(0, "shapes")))
    theirs, buffers = _layers(_without_twins(state))
    pairs = _pairs(theirs, _layers(like)[0], dict(names or {}))
    found = {
        f"{ours}.{leaf}": value
        for name, ours in pairs.items()
        for leaf, value in theirs[name].items()
    }
    params = {name: found[name].detach().to(value, copy=True) for name, value in like.items()}
    if learner.normalisation == "running":
        params |= _statistics(pairs, buffers, learner)
    return _with_rates(params, like, rates, theirs, pairs) if rates else params


def _with_rates(
    params: Params, like: Params, rates: list[Tensor], theirs: Layers, pairs: dict[str, str]
) -> Meta:
    """The meta of Meta-SGD; ConfigError where the rates do not have the parameters' shapes."""
    order = [f"{pairs[name]}.{leaf}" for name, leaves in theirs.items() for leaf in leaves]
    if [tuple(rate.shape) for rate in rates] != [tuple(like[name].shape) for name in order]:
        text = f"{len(rates)} rates, which do not have the shapes of the {len(order)} parameters"
        raise ConfigError(("lrs", text))
    ordered = dict(zip(order, rates, strict=True))
    return {
        "params": params,
        "rates": {name: ordered[name].detach().to(like[name], copy=True) for name in like},
    }


def _number(key: str) -> int:
    return int(key.rpartition(".")[2])


def _without_twins(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first name: learn2learn's OmniglotCNN lists its blocks under two
    names."""
    known: set[tuple[int, tuple[int, ...]]] = set()
    once = {}
    for name, value in state.items():
        mark = (value.data_ptr(), tuple(value.shape))
        if value.numel() and mark not in known:
            known.add(mark)
            once[name] = value
    return once


def _layers(state: Mapping[str, Tensor]) -> tuple[Layers, Layers]:
    """(layers with their parameters, layers with their buffers), in the order of the state dict."""
    parameters: Layers = {}
    buffers: Layers = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        (buffers if leaf in BUFFERS else parameters).setdefault(layer, {})[leaf] = value
    return parameters, buffers


def _pairs(theirs: Layers, ours: Layers, names: dict[str, str]) -> dict[str, str]:
    """Their layer -> our layer; ConfigError with every layer that has no counterpart of its
    shapes."""
    _check_names(theirs, ours, names)
    if theirs.keys() == ours.keys() and not names:
        names = {name: name for name in theirs}
    pairs, problems = dict(names), []
    left = {name: _kind(layer) for name, layer in theirs.items() if name not in pairs}
    free = {name: _kind(layer) for name, layer in ours.items() if name not in pairs.values()}
    for kind in sorted({*left.values(), *free.values()}):
        of_kind = ([name for name, its in pool.items() if its == kind] for pool in (left, free))
        for name, layer in zip_longest(*of_kind):
            if name is None:
                text = f"{_described(ours[layer])} has no counterpart among the model's "
                problems.append((layer, f"{text}{_called(kind)}s"))
            elif layer is None:
                text = f"{_described(theirs[name])} of the model has no counterpart in the learner"
                problems.append((name, text))
            else:
                pairs[name] = layer
    for name, layer in pairs.items():
        if _shapes(theirs[name]) != _shapes(ours[layer]):
            text = f"its counterpart {name} is {_described(theirs[name])}"
            problems.append((layer, f"is {_described(ours[layer])}, {text}"))
    if problems:
        hint = "build the learner with the shapes of the model"
        hint = f"{hint}, or pair layers by names={{their layer: our layer}}"
        layers = f"the model has {', '.join(theirs)}; the learner {', '.join(ours)}"
        raise ConfigError(*problems, ("", f"{hint}; {layers}"))
    return pairs


def _check_names(theirs: Layers, ours: Layers, names: dict[str, str]) -> None:
    """ConfigError with every entry of `names` that names no layer, or one of ours a second time."""
    problems = []
    for name, layer in names.items():
        if name not in theirs:
            text = f"{name!r} is not a layer of the model; {did_you_mean(name, theirs)}"
            problems.append(("names", text))
        if layer not in ours:
            text = f"{layer!r} is not a layer of the learner; {did_you_mean(layer, ours)}"
            problems.append(("names", text))
    problems += [
        ("names", f"{layer!r} occurs twice") for layer in ours if [*names.values()].count(layer) > 1
    ]
    if problems:
        raise ConfigError(*problems)


def _kind(layer: Params) -> int:
    return layer["weight"].dim() if "weight" in layer else 0


def _called(kind: int) -> str:
    return f"{KINDS[kind]} layer" if kind in KINDS else "other layer"


def _shapes(layer: Params) -> dict[str, tuple[int, ...]]:
    return {leaf: tuple(value.shape) for leaf, value in layer.items()}


def _described(layer: Params) -> str:
    return ", ".join(f"{leaf} {list(value.shape)}" for leaf, value in layer.items())


def _statistics(pairs: dict[str, str], buffers: Layers, learner: Learner) -> Params:
    """Running averages under our names; the start's own where the model keeps none."""
    _, start = trainable(learner.init(fold_in(0, "shapes")))
    theirs = {
        f"{STATS}{pairs[name]}.{BUFFERS[leaf]}": value
        for name, leaves in buffers.items()
        if name in pairs
        for leaf, value in leaves.items()
    }
    return {
        name: theirs.get(name, value).detach().to(value, copy=True) for name, value in start.items()
    }
