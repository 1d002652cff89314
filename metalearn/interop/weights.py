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
    """Return the meta of MAML, ANIL or BOIL from a module or state dict; of Meta-SGD with `lrs`.

    `model` is the module, learn2learn's MAML or MetaSGD around it, or the `state_dict` of either.
    If its names are not ours, layers are paired in order within each kind (convolutions,
    normalisations, linear layers: the last one is the head); `names` {their layer: our layer} pairs
    the layers that it names. Shapes must be the same; settings that do not change a shape (strides,
    pooling, activations) must be chosen equal by the caller. Running statistics of a batch norm are
    converted if the learner's normalisation is `running`, else dropped, as nothing reads them.
    Raises ConfigError with every layer that does not fit."""
    state = dict(model.state_dict() if isinstance(model, nn.Module) else model)
    rates = [
        state.pop(key)
        for key in sorted((k for k in state if k.startswith("lrs.")), key=_rate_index)
    ]
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    like, _ = trainable(learner.init(fold_in(0, "shapes")))
    theirs, buffers = _layers(_remove_duplicates(state))
    pairs = _pair_layers(theirs, _layers(like)[0], dict(names or {}))
    loaded = {
        f"{ours}.{leaf}": value
        for name, ours in pairs.items()
        for leaf, value in theirs[name].items()
    }
    params = {name: loaded[name].detach().to(value, copy=True) for name, value in like.items()}
    if learner.normalisation == "running":
        params |= _statistics(pairs, buffers, learner)
    return _with_rates(params, like, rates, theirs, pairs) if rates else params


def _with_rates(
    params: Params, like: Params, rates: list[Tensor], theirs: Layers, pairs: dict[str, str]
) -> Meta:
    """Return the meta of Meta-SGD; raises ConfigError if the shapes of the rates do not fit."""
    order = [f"{pairs[name]}.{leaf}" for name, leaves in theirs.items() for leaf in leaves]
    if [tuple(rate.shape) for rate in rates] != [tuple(like[name].shape) for name in order]:
        text = f"{len(rates)} rates, which do not have the shapes of the {len(order)} parameters"
        raise ConfigError(("lrs", text))
    ordered = dict(zip(order, rates, strict=True))
    return {
        "params": params,
        "rates": {name: ordered[name].detach().to(like[name], copy=True) for name in like},
    }


def _rate_index(key: str) -> int:
    return int(key.rpartition(".")[2])


def _remove_duplicates(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor once, under its first name: learn2learn's OmniglotCNN lists its blocks
    under two names."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    unique = {}
    for name, value in state.items():
        storage = (value.data_ptr(), tuple(value.shape))
        if value.numel() and storage not in seen:
            seen.add(storage)
            unique[name] = value
    return unique


def _layers(state: Mapping[str, Tensor]) -> tuple[Layers, Layers]:
    """Return (layers with parameters, layers with buffers), in the order of the state dict."""
    parameters: Layers = {}
    buffers: Layers = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        (buffers if leaf in BUFFERS else parameters).setdefault(layer, {})[leaf] = value
    return parameters, buffers


def _pair_layers(theirs: Layers, ours: Layers, names: dict[str, str]) -> dict[str, str]:
    """Return their layer -> our layer; raises ConfigError with every layer that has no counterpart
    of its shapes."""
    _check_names(theirs, ours, names)
    if theirs.keys() == ours.keys() and not names:
        names = {name: name for name in theirs}
    pairs, problems = dict(names), []
    unpaired_theirs = {name: _kind(layer) for name, layer in theirs.items() if name not in pairs}
    unpaired_ours = {
        name: _kind(layer) for name, layer in ours.items() if name not in pairs.values()
    }
    for kind in sorted({*unpaired_theirs.values(), *unpaired_ours.values()}):
        same_kind = (
            [name for name, layer_kind in pool.items() if layer_kind == kind]
            for pool in (unpaired_theirs, unpaired_ours)
        )
        for name, layer in zip_longest(*same_kind):
            if name is None:
                text = f"{_describe(ours[layer])} has no counterpart among the model's "
                problems.append((layer, f"{text}{_kind_name(kind)}s"))
            elif layer is None:
                text = f"{_describe(theirs[name])} of the model has no counterpart in the learner"
                problems.append((name, text))
            else:
                pairs[name] = layer
    for name, layer in pairs.items():
        if _shapes(theirs[name]) != _shapes(ours[layer]):
            text = f"its counterpart {name} is {_describe(theirs[name])}"
            problems.append((layer, f"is {_describe(ours[layer])}, {text}"))
    if problems:
        hint = "build the learner with the shapes of the model"
        hint = f"{hint}, or pair layers by names={{their layer: our layer}}"
        layers = f"the model has {', '.join(theirs)}; the learner {', '.join(ours)}"
        raise ConfigError(*problems, ("", f"{hint}; {layers}"))
    return pairs


def _check_names(theirs: Layers, ours: Layers, names: dict[str, str]) -> None:
    """Raise ConfigError with every entry of `names` that is not a layer, or repeats one of ours."""
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


def _kind_name(kind: int) -> str:
    return f"{KINDS[kind]} layer" if kind in KINDS else "other layer"


def _shapes(layer: Params) -> dict[str, tuple[int, ...]]:
    return {leaf: tuple(value.shape) for leaf, value in layer.items()}


def _describe(layer: Params) -> str:
    return ", ".join(f"{leaf} {list(value.shape)}" for leaf, value in layer.items())


def _statistics(pairs: dict[str, str], buffers: Layers, learner: Learner) -> Params:
    """Return running statistics under our names; the initial ones where the model has none."""
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
