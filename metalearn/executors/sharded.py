"""One meta-step made by several processes: each has tasks of its own, and one flat vector passes
between them.

    rank r of R:   v_r = [sum over its tasks of gradients, of metrics]
    all:           v = v_1 + ... + v_R,   theta <- update(theta, v / T)

Tasks are shared out by their number in the step, so that they are the same tasks whatever R is. The
update is made by every process: what would have to be sent otherwise is larger than what it
computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from metalearn.executors.allocator import keep_freed_memory
from metalearn.executors.cuda_graphs import captured
from metalearn.executors.executor import (
    CAPTURED,
    CHUNK,
    COMPILED,
    WHOLE,
    Advance,
    Draw,
    Wrap,
    as_it_is,
    by_steps,
    number_on,
    sums_in_pieces,
)
from metalearn.executors.simplify import one_by_one
from metalearn.executors.trace import by_shapes, compiled, interpreted, light, traceable
from metalearn.rng import fold_in
from metalearn.tree import flatten, scale, unflatten
from metalearn.types import Key, MetaState, Method, Metrics

Total = Callable[[Tensor], Tensor]  # adds a vector up over all processes


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """(first, how many) of `count` numbered things that belong to a rank; the first ranks take what
    is left over.
    """
    each, over = divmod(count, size)
    return rank * each + min(rank, over), each + (rank < over)


class Packing:
    """A tree of tensors as one vector, and back; learns the tree's form when it packs."""

    def pack(self, tree: Any) -> Tensor:
        values, self._structure = flatten(tree)
        self._forms = [(value.shape, value.dtype) for value in values]
        kind = reduce(torch.promote_types, (value.dtype for value in values))
        return torch.cat([value.reshape(-1).to(kind) for value in values])

    def unpack(self, vector: Tensor) -> Any:
        pieces = vector.split([shape.numel() for shape, _ in self._forms])
        values = [piece.view(shape).to(kind) for piece, (shape, kind) in zip(pieces, self._forms)]
        return unflatten(values, self._structure)


def make_split_advance(
    method: Method,
    draw: Draw,
    key: Key,
    tasks: int,
    own: int,
    device: str,
    executor: str,
    chunk: int | None,
    total: Total,
) -> Advance:
    """(state, n) -> (state, metrics) of step n, like `make_advance`; `draw` draws the `own` tasks
    of `tasks`.

    The state's lanes are those of the own tasks.
    """
    assert method.task_grad is not None and method.update is not None
    update, packing, key = method.update, Packing(), key.to(device)
    if not device.startswith("cuda"):
        keep_freed_memory()
    fits = executor == "compiled" and (chunk is None or own <= chunk)
    whole = fits or executor in ("vmap", "compiled_steps", *WHOLE)
    wrap = _wrap_of(executor)
    at_once = (chunk or CHUNK) if executor in ("chunk", "compiled") else 1
    sums = sums_in_pieces(method, own, as_it_is) if whole else sums_in_pieces(method, at_once, wrap)

    def part(state: MetaState, data: Any) -> tuple[Tensor, Any]:
        found, lanes = sums(state, data)
        return packing.pack(found), lanes

    def drawn(state: MetaState, key: Key, number: Tensor) -> tuple[Tensor, Any]:
        return part(state, draw(fold_in(key, number)))

    def finish(state: MetaState, vector: Tensor) -> tuple[MetaState, Metrics]:
        grads, metrics = scale(packing.unpack(vector), 1 / tasks)
        return update(state, grads), metrics

    inside = executor in CAPTURED or (
        whole and executor not in ("vmap", "compiled_steps") and light(draw, key)
    )
    of_number = wrap(drawn) if inside else _apart(draw, wrap(part) if whole else part, device, key)
    after = wrap(finish)

    def advance(state: MetaState, number: int) -> tuple[MetaState, Metrics]:
        vector, lanes = of_number(state, key, number_on(device, number))
        state, metrics = after(state._replace(lanes=None), total(vector))
        return state._replace(lanes=lanes), metrics

    return advance


def _wrap_of(executor: str) -> Wrap:
    """How an executor turns a function of tensors into one that it runs."""
    if executor in CAPTURED:
        return lambda function: captured(function, compiling=executor in COMPILED)
    if executor == "traced":
        return lambda function: by_shapes(function, one_by_one)
    if executor == "compiled_steps":
        return by_steps
    return compiled if executor in COMPILED else as_it_is


def _apart(draw: Draw, part: Callable[..., Any], device: str, key: Key) -> Callable[..., Any]:
    """Sampling by itself, then the gradients."""
    if device.startswith("cuda") and traceable(draw, key) is not None:
        draw = by_shapes(
            draw, interpreted
        )  # its constants stay on the device: copying them makes the host wait
    return lambda state, key, number: part(state, draw(fold_in(key, number)))
