"""Layers of torch that cannot be batched over tasks as they are, replaced by changing their class.

A layer keeps its object, its attributes and its parameters' names; only `forward` is another. A
subclass keeps its own `forward`, and meets the substitute where it calls its parent's."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.rnn import RNNCellBase

from metalearn.models.external.attention import UnfusedAttention, UnfusedEncoderLayer
from metalearn.models.external.batch_norm import StatedBatchNorm, StatedInstanceNorm
from metalearn.models.external.recurrent import UnfusedCell, UnrolledRNN
from metalearn.models.norm import Norm

SUBSTITUTES: dict[type[nn.Module], type[nn.Module]] = {
    _BatchNorm: StatedBatchNorm,
    _InstanceNorm: StatedInstanceNorm,
    nn.RNNBase: UnrolledRNN,
    RNNCellBase: UnfusedCell,
    nn.MultiheadAttention: UnfusedAttention,
    nn.TransformerEncoderLayer: UnfusedEncoderLayer,
}


def substitute(module: nn.Module, policies: dict[str, str]) -> nn.Module:
    """Replace layers of the module in place; `policies` are those of its normalisation layers."""
    for name, layer in module.named_modules():
        for kind, new in SUBSTITUTES.items():
            if isinstance(layer, kind):
                layer.__class__ = _class(type(layer), new)
                layer.stated_policy = policies.get(name, "none")  # type: ignore[assignment]
        if isinstance(layer, StatedBatchNorm | Norm):
            layer.stated_name = name
        if isinstance(layer, nn.TransformerEncoder):
            layer.enable_nested_tensor = layer.use_nested_tensor = False
    return module


def _class(kind: type[nn.Module], new: type[nn.Module]) -> type[nn.Module]:
    """Return `kind` with the `forward` of `new` instead of torch's."""
    torchs = next(part for part in kind.__mro__ if part.__module__.startswith("torch.nn.modules."))
    base = type(torchs.__name__, (new, torchs), {})
    return base if torchs is kind else type(kind.__name__, (kind, base), {})
