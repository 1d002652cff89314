"""Initial parameters of a user's module.

Its own values, those that its constructor samples for a key, or a function of names."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.models.external.leaves import HEAD, Leaves
from metalearn.models.init import Scheme, start, weighted
from metalearn.types import EpisodeSpec, Key, Params

Draw = Callable[[Key, str, tuple[int, ...], torch.dtype], Tensor]
Init = Callable[[Key], Params]


def of_values(values: Params) -> Init:
    """Return an initialization with the same values for every key."""
    return lambda key: {leaf: value.clone() for leaf, value in values.items()}


def of_names(module: nn.Module, leaves: Leaves, init: Scheme | Draw, spec: EpisodeSpec) -> Init:
    """Each parameter by a scheme for torch's layers, or by `init(key, name, shape, dtype)`.

    Frozen parameters and buffers keep the module's values."""
    values, owners = leaves.values(module), dict(module.named_modules())
    drawn = {name for name, value in module.named_parameters() if value.requires_grad}

    def init_params(key: Key) -> Params:
        params = dict(values)
        for name, leaf in leaves.names.items():
            if name not in drawn:
                continue
            shape = tuple(values[leaf].shape)
            if callable(init):
                value = init(rng.fold_in(key, name), name, shape, spec.dtype)
            else:
                value = start(key, name, owners[name.rpartition(".")[0]], shape, init, spec.dtype)
            params[leaf] = value.to(spec.device, spec.dtype)
        return params

    return init_params


def with_new_head(init: Init, module: nn.Module, name: str) -> Init:
    """`init` with the leaves of the linear layer `name` drawn by the key, as torch draws them."""
    layer = module.get_submodule(name)

    def init_params(key: Key) -> Params:
        params = init(key)
        for leaf in HEAD:
            if leaf in params:
                old, own = params[leaf], rng.fold_in(key, leaf)
                value = weighted(own, leaf, layer, tuple(old.shape), "uniform", old.dtype)
                params[leaf] = value.to(old.device)
        return params

    return init_params


class Constructor:
    """The start that a class or function draws for a key; under vmap each key calls it once."""

    def __init__(self, make: Callable[[int], nn.Module], leaves: Leaves, like: nn.Module) -> None:
        self.make, self.leaves = make, leaves
        self.like = leaves.values(like)
        self.constants = _constants(like)
        self.place = len(_constructors)
        while self.place in _constructors:
            self.place += 1
        _constructors[self.place] = self

    def __call__(self, key: Key) -> Params:
        values = _start(key, self.place)
        return dict(zip(self.leaves.names.values(), values, strict=True))

    def draw(self, key: Key) -> list[Tensor]:
        """The values for one key []; ConfigError where another network comes out."""
        module = self.make(int(key) & ((1 << 63) - 1))
        try:
            values = self.leaves.values(module)
        except KeyError as error:
            text = f"creates a module without {error} for another key: its layers must not change"
            raise ConfigError(("net", text)) from None
        for leaf, value in values.items():
            if value.shape != self.like[leaf].shape:
                old = list(self.like[leaf].shape)
                text = f"has shape {list(value.shape)} for one key and {old} for another"
                raise ConfigError((leaf, text))
        for name, value in _constants(module).items():
            if name not in self.constants or not torch.equal(value, self.constants[name]):
                text = "differs between two keys, but only floating-point tensors may differ"
                raise ConfigError((name, text))
        return list(values.values())


_constructors: weakref.WeakValueDictionary[int, Constructor] = weakref.WeakValueDictionary()


def _constants(module: nn.Module) -> Params:
    return {name: v for name, v in module.named_buffers() if not v.is_floating_point()}


@torch.library.custom_op("metalearn::module_start", mutates_args=())
def _start(key: Tensor, place: int) -> list[Tensor]:
    return _constructors[place].draw(key)


@_start.register_fake
def _fake_start(key: Tensor, place: int) -> list[Tensor]:
    return [torch.empty_like(value) for value in _constructors[place].like.values()]


@_start.register_vmap
def _start_over_keys(info: Any, in_dims: Any, key: Tensor, place: int) -> Any:
    rows = [_start(task_key, place) for task_key in key.unbind(in_dims[0])]
    return [torch.stack(values) for values in zip(*rows, strict=True)], [0] * len(rows[0])
