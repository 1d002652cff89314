"""Arithmetic on pytrees of tensors; the only file that uses torch's pytree module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

STATS = "stats."  # prefix of running statistics: gradients and update rules skip them
Type = TypeVar("Type", bound=type)


class _Field(str):
    """A field name whose type keeps torch's pytree from treating its class as a namedtuple.

    In a namedtuple None is a leaf, whatever is registered, and `torch.func.vmap` rejects it."""


def optional_leaves(kind: Type) -> Type:
    """Register a NamedTuple whose fields with a default are not leaves of pytrees if None."""
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    optional: dict[str, Any] = kind._field_defaults  # type: ignore[attr-defined]
    kind._fields = tuple(map(_Field, names))  # type: ignore[attr-defined]

    def present(values: Any) -> list[tuple[str, Any]]:
        pairs = zip(names, values, strict=True)
        return [(name, value) for name, value in pairs if not (value is None and name in optional)]

    def flatten(values: Any) -> tuple[list[Any], tuple[str, ...]]:
        items = present(values)
        return [value for _, value in items], tuple(name for name, _ in items)

    def flatten_with_keys(values: Any) -> tuple[list[Any], tuple[str, ...]]:
        items = present(values)
        keyed = [(_pytree.GetAttrKey(name), value) for name, value in items]
        return keyed, tuple(name for name, _ in items)

    _pytree.register_pytree_node(
        kind,
        flatten,
        lambda values, names: kind(**dict(zip(names, values, strict=True))),
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        to_dumpable_context=list,
        from_dumpable_context=tuple,
        flatten_with_keys_fn=flatten_with_keys,
    )
    return kind


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `function` to the leaves of one or several trees of the same structure; None stays.

    >>> ml.tree.tree_map(lambda x: 2 * x, {"a": 1, "b": [2, None]})
    {'a': 2, 'b': [4, None]}
    """
    return _pytree.tree_map(
        lambda leaf, *others: None if leaf is None else function(leaf, *others), tree, *rest
    )


def leaves(tree: Any) -> list[Any]:
    """Return the leaves in order; None is not a leaf.

    >>> ml.tree.leaves({"a": 1, "b": [2, None]})
    [1, 2]
    """
    return [leaf for leaf in _pytree.tree_leaves(tree) if leaf is not None]


class Structure(NamedTuple):
    """The structure of a tree without its leaves; None is part of it."""

    spec: Any
    present: tuple[bool, ...]  # for each position, whether it has a leaf


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Return (leaves, structure), the inverse of `unflatten`. None is not a leaf.

    >>> values, structure = ml.tree.flatten({"a": 1, "b": [2, None]})
    >>> values, ml.tree.unflatten([3, 4], structure)
    ([1, 2], {'a': 3, 'b': [4, None]})
    """
    values, spec = _pytree.tree_flatten(tree)
    present = tuple(value is not None for value in values)
    return [value for value in values if value is not None], Structure(spec, present)


def unflatten(values: Sequence[Any], structure: Structure) -> Any:
    """Return the tree of a structure with these leaves.

    >>> _, structure = ml.tree.flatten((1, 2))
    >>> ml.tree.unflatten([3, 4], structure)
    (3, 4)
    """
    rest = iter(values)
    whole = [next(rest) if present else None for present in structure.present]
    return _pytree.tree_unflatten(whole, structure.spec)


def add(a: Any, b: Any) -> Any:
    """Add two trees leaf by leaf.

    >>> ml.tree.add({"a": 1}, {"a": 2})
    {'a': 3}
    """
    return tree_map(lambda x, y: x + y, a, b)


def sub(a: Any, b: Any) -> Any:
    """Subtract two trees leaf by leaf.

    >>> ml.tree.sub({"a": 1}, {"a": 2})
    {'a': -1}
    """
    return tree_map(lambda x, y: x - y, a, b)


def scale(tree: Any, factor: float | Tensor) -> Any:
    """Multiply every leaf by a factor.

    >>> ml.tree.scale({"a": 1.5}, 2)
    {'a': 3.0}
    """
    return tree_map(lambda x: x * factor, tree)


def zeros_like(tree: Any) -> Any:
    """Return zeros in the shape of every leaf.

    >>> ml.tree.zeros_like({"a": torch.ones(2)})
    {'a': tensor([0., 0.])}
    """
    return tree_map(torch.zeros_like, tree)


def detach(tree: Any) -> Any:
    """Detach every leaf: the same values, constant for gradients.

    >>> ml.tree.detach({"a": torch.ones(1, requires_grad=True)})["a"].requires_grad
    False
    """
    return tree_map(lambda x: x.detach(), tree)


def mean_over_tasks(tree: Any) -> Any:
    """Mean of every leaf over tasks: [T, ...] -> [...].

    >>> ml.tree.mean_over_tasks({"a": torch.tensor([1.0, 3.0])})
    {'a': tensor(2.)}
    """
    return tree_map(lambda x: x.mean(0), tree)


def vmap(function: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    """`torch.func.vmap` that passes None through, such as the weight of a Batch without one.

    `in_dims` is 0 or None for all arguments, or a tuple with one of them for each.

    >>> batch = ml.Batch(torch.ones(5, 3), torch.zeros(5))  # without a weight
    >>> ml.tree.vmap(lambda one: one.x.sum())(batch).shape
    torch.Size([5])
    """

    def mapped(*args: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        axes = tuple(
            None if dim is None else tree_map(lambda leaf, dim=dim: dim, arg)
            for dim, arg in zip(dims, args, strict=True)
        )
        structures: list[Structure] = []

        def tensors(*args: Any) -> list[Tensor]:
            values, structure = flatten(function(*args))
            structures.append(structure)
            return values

        return unflatten(torch.func.vmap(tensors, in_dims=axes)(*args), structures[-1])

    return mapped


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of the same structure into one tree with a leading axis.

    >>> ml.tree.stack([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}])
    {'a': tensor([1, 2])}
    """
    return tree_map(lambda *xs: torch.stack(xs), *trees)


def take(tree: Any, index: Any) -> Any:
    """Index the leading axis of every leaf.

    >>> ml.tree.take({"a": torch.tensor([5, 6])}, 1)
    {'a': tensor(6)}
    """
    return tree_map(lambda x: x[index], tree)


def norm(tree: Any) -> Tensor:
    """Euclidean norm over all leaves: [].

    >>> ml.tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    return torch.stack([x.square().sum() for x in leaves(tree)]).sum().sqrt()


def partition(
    params: dict[str, Tensor], keep: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a flat dict by name: (those that `keep` is true for, the rest).

    >>> ml.tree.partition({"head.bias": 1, "body.bias": 2}, lambda name: name.startswith("head."))
    ({'head.bias': 1}, {'body.bias': 2})
    """
    first = {name: value for name, value in params.items() if keep(name)}
    return first, {name: value for name, value in params.items() if name not in first}


def trainable(params: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (trainable parameters, running statistics).

    >>> ml.tree.trainable({"weight": 1, "stats.mean": 2})
    ({'weight': 1}, {'stats.mean': 2})
    """
    return partition(params, lambda name: not name.startswith(STATS))


def named_leaves(tree: Any) -> dict[str, Tensor]:
    """Return every leaf under a dotted name: the checkpoint format.

    >>> ml.tree.named_leaves({"meta": {"w": torch.tensor(1)}, "step": torch.tensor(2)})
    {'meta.w': tensor(1), 'step': tensor(2)}
    """
    named: dict[str, Tensor] = {}
    for path, value in _pytree.tree_flatten_with_path(tree)[0]:
        if value is not None:
            named[".".join(_key_name(entry) for entry in path)] = value
    return named


def from_named(like: Any, named: dict[str, Tensor]) -> Any:
    """Return a tree like `like` with the leaves of `named`; raises KeyError for missing names.

    >>> like = {"meta": {"w": torch.tensor(0)}}
    >>> ml.tree.from_named(like, {"meta.w": torch.tensor(1)})
    {'meta': {'w': tensor(1)}}
    """
    flat, structure = _pytree.tree_flatten_with_path(like)
    names = [
        None if value is None else ".".join(_key_name(entry) for entry in path)
        for path, value in flat
    ]
    missing = [name for name in names if name is not None and name not in named]
    if missing:
        raise KeyError(f"missing: {', '.join(missing[:5])}")
    return _pytree.tree_unflatten(
        [None if name is None else named[name] for name in names], structure
    )


def _key_name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
