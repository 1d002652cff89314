"""Tensors of a module that depend on a parameter outside of its forward.

torch changes parameters in place: what shares their memory changes with them. A copy of a module
has tensors of its own, so that this would be lost silently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Named = tuple[str, Tensor]
FLAT = "_flat_weights"  # of nn.RNNBase, which torch renews
REGISTERED = ("_parameters", "_buffers", "_modules")


def held_tensors(module: nn.Module, *, parameters: bool = True) -> Iterator[Named]:
    """Yield (path, tensor) of parameters, buffers, and attributes, also in lists and dicts."""
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        tables = [part._buffers, {k: v for k, v in vars(part).items() if k not in REGISTERED}]
        for table in ([part._parameters] if parameters else []) + tables:
            for key, value in table.items():
                yield from _tensors_in(value, prefix + key)


def _tensors_in(value: Any, path: str, depth: int = 4) -> Iterator[Named]:
    """Yield a tensor, or those in a collection; `depth` limits collections within others."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping | list | tuple) and depth:
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors_in(item, f"{path}.{key}", depth - 1)


def computed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers and attributes that were computed from a parameter."""
    held = held_tensors(module, parameters=False)
    return {path: value for path, value in held if value.grad_fn is not None}


def shared_memory(module: nn.Module) -> list[tuple[str, str]]:
    """Return the problems of parameters whose memory is also that of another tensor."""
    found: dict[int, Named] = {}
    for path, value in held_tensors(module):
        if _has_memory(value) and FLAT not in path.split("."):
            found.setdefault(id(value), (path, value))
    storages = defaultdict[int, list[Named]](list)
    for path, value in found.values():
        storages[value.untyped_storage().data_ptr()].append((path, value))
    problems = []
    for tensors in storages.values():
        for (first, one), (second, other) in combinations(tensors, 2):
            if (one.requires_grad or other.requires_grad) and _overlap(one, other):
                text = f"shares memory with {first}, and steps would change them apart: tie them"
                text += f" as one parameter ({second} = {first}), or compute it in forward"
                problems.append((second, text))
    return problems


def _has_memory(value: Tensor) -> bool:
    """Return whether it is an ordinary tensor with memory, not computed from another one."""
    if is_lazy(value) or value.is_meta or value.layout != torch.strided or not value.is_leaf:
        return False
    return value.numel() > 0 and type(value) in (Tensor, nn.Parameter, nn.Buffer)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one storage have numbers in common."""
    first, second = _span(one), _span(other)
    if first[1] <= second[0] or second[1] <= first[0]:
        return False
    if one.dtype != other.dtype:
        return True
    places = torch.arange(one.untyped_storage().nbytes() // one.element_size())
    own, others = (
        places.as_strided(part.shape, part.stride(), part.storage_offset()).flatten()
        for part in (one, other)
    )
    return bool(torch.isin(own, others).any())


def _span(value: Tensor) -> tuple[int, int]:
    """Return the first byte in the storage, and the one after the last."""
    sizes = zip(value.shape, value.stride(), strict=True)
    last = value.storage_offset() + sum((size - 1) * stride for size, stride in sizes)
    size = value.element_size()
    return int(value.storage_offset()) * size, int(last + 1) * size
