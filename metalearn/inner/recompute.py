"""Activation checkpointing of inner steps: backward computes their activations again.

torch.utils.checkpoint does not compose with torch.func; a custom Function that differentiates by
torch.func does. The idea: Griewank & Walther 2000, algorithm 799; Chen et al. 2016,
arXiv:1604.06174. Kept per step: its inputs, as large as the parameters; computed per step: one
inner step more. A compiler that merges equal operations undoes it in part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metalearn.tree import flatten, unflatten

_on: list[
    bool
    # of the open contexts; a list, which torch.compile can read and a ContextVar it cannot
] = []


@contextmanager
def checkpointing(on: bool = True) -> Iterator[None]:
    """Context manager in which `adapt` stores no activations of its steps.

    Gradients through it are the same and cost more time."""
    _on.append(on)
    try:
        yield
    finally:
        _on.pop()


def is_checkpointing() -> bool:
    """Whether the innermost `checkpointing` scope is on."""
    return bool(_on) and _on[-1]


def checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    """Return `function(*args)`; a backward pass computes its activations again.

    Everything that a gradient flows to must come in through `args` (trees of tensors): what
    `function` only closes over is a constant to the gradient.
    """
    leaves, structure = flatten(args)
    end: list[Any] = []

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        results, shape = flatten(function(*unflatten(list(tensors), structure)))
        end.append(shape)
        # torch saves no input that is handed back as it is; a view of it is another tensor.
        return tuple(
            value.view_as(value) if any(value is one for one in tensors) else value
            for value in results
        )

    results = _Checkpointed.apply(flat, *leaves)  # type: ignore[no-untyped-call]
    return unflatten(list(results), end[-1])


class _Checkpointed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *inputs: Tensor) -> Any:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del output
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        float_indices = [index for index, value in enumerate(inputs) if value.is_floating_point()]

        def product(*real_inputs: Tensor) -> Tensor:
            whole = list(inputs)
            for index, value in zip(float_indices, real_inputs, strict=True):
                whole[index] = value
            return torch.stack(
                [(a * b).sum() for a, b in zip(ctx.function(*whole), grads, strict=True)]
            ).sum()

        # The gradient of the product with what came in, and not vjp, whose second half runs outside
        # of its level and loses the tasks under vmap.
        real_inputs = tuple(inputs[index] for index in float_indices)
        real_grads = torch.func.grad(product, argnums=tuple(range(len(float_indices))))(
            *real_inputs
        )
        grads_by_index = dict(zip(float_indices, real_grads, strict=True))
        return (None, *(grads_by_index.get(index) for index in range(len(inputs))))
