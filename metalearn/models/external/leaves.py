"""Which tensors of a module are leaves of a Learner's parameters, and under which names.

Parameters keep their names, the head's are `head.weight` and `head.bias`. Leaves with the prefix
"stats." are not updated by any step: frozen parameters, buffers, running statistics. Tied
parameters are one leaf. Integers and the statistics that a policy does not read are constants of
the module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from metalearn.models.external.batch_norm import OF_BATCH, StatedBatchNorm, StatedInstanceNorm
from metalearn.models.external.head import Head
from metalearn.tree import STATS
from metalearn.types import Params

HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Leaves:
    """The names of a module's tensors."""

    names: dict[str, str]  # in the module -> in the parameters
    fixed: tuple[str, ...]  # parameters of the module that require no gradient
    tied: bool

    def named(self, params: Params) -> Params:
        """Return the parameters by the module's names; those under "stats." get no gradient."""
        return {
            name: params[leaf].detach() if leaf.startswith(STATS) else params[leaf]
            for name, leaf in self.names.items()
        }

    def values(self, module: nn.Module) -> Params:
        """Return copies of the module's tensors by the names of the leaves."""
        tensors = named_tensors(module)
        return {leaf: tensors[name].detach().clone() for name, leaf in self.names.items()}

    def aliases(self, module: nn.Module) -> tuple[tuple[str, str], ...]:
        """Return (name, leaf) for every other name of a tied parameter."""
        parameters = dict(module.named_parameters())
        leaf_of = {
            id(parameters[name]): leaf for name, leaf in self.names.items() if name in parameters
        }
        all_parameters = module.named_parameters(remove_duplicate=False)
        leaf_by_name = {
            name: leaf_of[id(value)] for name, value in all_parameters if id(value) in leaf_of
        }
        return tuple((name, leaf) for name, leaf in leaf_by_name.items() if name != leaf)

    def body(self) -> Leaves:
        """Return the leaves without the head."""
        without_head = {name: leaf for name, leaf in self.names.items() if leaf not in HEAD}
        return Leaves(without_head, self.fixed, self.tied)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def leaves_of(module: nn.Module, head: Head | None) -> Leaves:
    """Return the leaves of a module whose layers are substituted."""
    names: dict[str, str] = {}
    fixed: list[str] = []
    head_names = {} if head is None else {f"{head.name}.{leaf[5:]}": leaf for leaf in HEAD}
    taken = {name for name, _ in module.named_parameters() if not _is_reserved(name)}
    for name, value in module.named_parameters():
        if not value.requires_grad:
            fixed.append(name)
        if not value.is_floating_point():
            continue
        if not value.requires_grad:
            names[name] = STATS + name
        elif name in head_names or not _is_reserved(name):
            names[name] = head_names.get(name, name)
        else:
            names[name] = _free_name(name, taken)
            taken.add(names[name])
    unread = _unread_statistics(module)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and name not in unread:
            names[name] = STATS + name
    count = len(list(module.named_parameters(remove_duplicate=False)))
    return Leaves(names, tuple(fixed), count > len(list(module.parameters())))


def _is_reserved(name: str) -> bool:
    """Return whether a parameter of this name would be taken for the head, or for statistics."""
    return name.startswith("head.") or f".{STATS}" in f".{name}"


def _free_name(name: str, taken: set[str]) -> str:
    """Return a name of a leaf that is not reserved and not in `taken`."""
    *path, leaf = name.split(".")
    parts = [f"{part}_" if f"{part}." == STATS else part for part in path]
    name = ".".join([*parts, leaf])
    name = f"module.{name}" if _is_reserved(name) else name
    while name in taken:
        name = f"module.{name}"
    return name


def _unread_statistics(module: nn.Module) -> set[str]:
    return {
        f"{name}.{leaf}"
        for name, layer in module.named_modules()
        if (isinstance(layer, StatedBatchNorm) and layer.stated_policy in OF_BATCH)
        or (isinstance(layer, StatedInstanceNorm) and layer.stated_policy == "none")
        for leaf in ("running_mean", "running_var")
    }
