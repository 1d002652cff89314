"""The last linear layer of a module: found by following a forward pass, or by its name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.models.external.module import Inputs, Output, call_module, entry, first_line


class Head(NamedTuple):
    """A linear layer whose weight and bias are leaves of their own."""

    name: str  # in the module
    last: bool  # whether its output is the module's, by the forward of nn.Linear
    replaceable: bool  # whether its output is the module's, by any forward


def find_head(
    module: nn.Module, x: Tensor, inputs: Inputs, output: Output, name: str | None = None
) -> Head | None:
    """Return the layer `name`, or the last Linear called that gives the module's output; or None.

    Its output has the shape of the module's and is part of it. Raises ConfigError if `name` is not
    a Linear."""
    layers = {key: part for key, part in module.named_modules() if isinstance(part, nn.Linear)}
    if name is not None and name not in layers:
        kinds = ", ".join(layers) or "none"
        raise ConfigError(("head", f"{name!r} is not a Linear layer of the module; valid: {kinds}"))
    calls: list[tuple[str, Tensor]] = []

    def record(key: str) -> Any:
        return lambda layer, args, out: calls.append((key, out))

    hooked = {key for key, part in layers.items() if part._forward_hooks or part._forward_pre_hooks}
    hooks = [part.register_forward_hook(record(key)) for key, part in layers.items()]
    with torch.enable_grad():
        out = entry(_with_gradients(module, x, inputs), output)
    for hook in hooks:
        hook.remove()
    for key, value in reversed(calls):
        if name is None and (value.shape != out.shape or not _depends(out, value)):
            continue
        if name in (None, key) and _is_own(module, key):
            ends = value is out and sum(key == called_key for called_key, _ in calls) == 1
            ends = ends and key not in hooked
            return Head(key, ends and _is_plain(layers[key]), ends)
        if name is None:
            return None
    if name is not None:
        text = f"{name!r} has no trainable weight that forward uses: use head=None for no head"
        raise ConfigError(("head", text))
    return None


def _with_gradients(module: nn.Module, x: Tensor, inputs: Inputs) -> Any:
    try:
        return call_module(module, x, inputs)
    except Exception as error:
        text = f"forward fails if gradients are recorded: {first_line(error)}"
        raise ConfigError((type(module).__name__, text)) from error


def _depends(out: Tensor, value: Tensor) -> bool:
    if value is out:
        return True
    if not (value.requires_grad and out.requires_grad):
        return False
    total = out.abs().sum()
    return torch.autograd.grad(total, value, retain_graph=True, allow_unused=True)[0] is not None


def _is_plain(layer: nn.Module) -> bool:
    """Return whether forward is that of nn.Linear, which a subclass may replace."""
    return type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)


def _is_own(module: nn.Module, name: str) -> bool:
    """Return whether weight and bias are trainable parameters of this layer alone.

    Tied, frozen and computed ones are not."""
    layer = module.get_submodule(name)
    for leaf, value in (("weight", layer.weight), ("bias", layer.bias)):
        if value is None:
            continue
        names = [n for n, v in module.named_parameters(remove_duplicate=False) if v is value]
        if names != [f"{name}.{leaf}"] or not value.requires_grad:
            return False
    return True


def unchanged(input: Tensor) -> Tensor:
    """`forward` of a head whose output is the module's, in a body; its argument as of nn.Linear."""
    return input


def stop_at_head(input: Tensor) -> Tensor:
    """`forward` of a head after which the module goes on: ends the pass with what came in."""
    raise Reached(input)


class Reached(Exception):
    """Carries the input of the head out of a forward pass."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def replace_layer(module: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Replace the layer `name` of the module in place; returns the module."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)
    return module
