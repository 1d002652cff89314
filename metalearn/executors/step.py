"""One meta-step as `sample` and `step`, made by one process or by several.

Rank r of R processes has tasks of its own, and one flat vector passes between them:

    rank r:   v_r = [sum over its tasks of gradients, of metrics]
    all:      v = v_1 + ... + v_R,   theta <- update(theta, v / T)

Tasks are numbered within a step, so that they are the same tasks whatever R is. Every process makes
the update, because sending the result would cost more than computing it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.executors.allocator import keep_freed_memory
from metalearn.executors.executor import (
    CAPTURED,
    Step,
    in_pieces,
    make_step,
    piece_size,
    wrap_of,
    wrap_steps,
)
from metalearn.executors.pieces import Wrap, identity, sums_in_pieces, workers_on
from metalearn.executors.trace import interpret_unchanged, light, traceable
from metalearn.kernels.draw import fold_in
from metalearn.tree import flatten, scale, unflatten
from metalearn.types import Key, MetaState, Method, Metrics

# (key, count, first): the tasks first .. first + count - 1 of a step, or its batch of examples
BatchSampler = Callable[[Key, int, int], Any]
Total = Callable[[Tensor], Tensor]  # adds a vector up over all processes
LocalStep = Callable[[MetaState, Any], Any]  # what one process computes from its own tasks


StepSampler = Callable[[Key, Tensor], Any]
Several = Callable[[MetaState, int, int], tuple[MetaState, list[Metrics]]]


class Settings(NamedTuple):
    """How a process computes its part of a step: the arguments of `make_step`."""

    method: Method
    executor: str
    chunk: int | None
    workers: int | None


class Executable(NamedTuple):
    """A training step under an executor: state, metrics = step(state, sample(number))."""

    # What step number n learns from. Where the sampling is a part of the recorded step, n itself
    # as a 0-d tensor.
    sample: Callable[[int], Any]
    step: Step
    # (state, n, count): the state after steps n .. n + count - 1, and the metrics of each; where a
    # captured graph can hold several steps
    several: Several | None = None


def make_step_fn(
    method: Method,
    draw: BatchSampler,
    key: Key,
    *,
    tasks: int,
    device: str,
    executor: str,
    chunk: int | None = None,
    workers: int | None = None,
    share: tuple[int, int] | None = None,
    total: Total = identity,
) -> Executable:
    """The steps of a training under an executor; step n learns from `draw(fold_in(key, n), ...)`.

    `share` is this process's (first, count) of the `tasks` of a step, and `total` sums a vector
    over the processes; the state's lanes are those of the own tasks. With `total` left out one
    process makes the whole step, and nothing is packed. Methods without `task_grad` make the
    whole step in every process. `workers` threads compute the pieces of a step on a CPU.
    """
    if not device.startswith("cuda"):
        keep_freed_memory()
    sharded = total is not identity and method.task_grad is not None
    first, count = share if share is not None and sharded else (0, tasks)
    chunk = None if executor == "compiled" and chunk is not None and count <= chunk else chunk
    pieces = method.task_grad is not None and in_pieces(executor, chunk)
    settings = Settings(method, executor, chunk, workers_on(device, workers))
    local: LocalStep | None = make_step(*settings) if pieces else method.step
    local, combine = _sharded(settings, tasks, count, total) if sharded else (local, None)
    assert local is not None
    wrap: Wrap = identity if pieces else (wrap_of if sharded else wrap_steps)(executor)
    key = key.to(device)

    def sample(key: Key, number: Tensor) -> Any:
        return draw(fold_in(key, number), count, first)

    whole = executor in ("traced", "compiled") and not pieces
    fused = executor in CAPTURED or (whole and light(sample, key, _number(device, 0)))
    made = (_sampling_recorded if fused else _sampling_separate)(wrap, local, sample, key, device)
    return made if combine is None else _combined(made, combine)


def _combined(made: Executable, combine: Step) -> Executable:
    return Executable(made.sample, lambda state, data: combine(state, made.step(state, data)))


def _sampling_recorded(
    wrap: Wrap, local: LocalStep, sample: StepSampler, key: Key, device: str
) -> Executable:
    """Sampling is a part of the recorded function."""
    run = wrap(lambda state, key, number: local(state, sample(key, number)))
    several = getattr(run, "several", None)

    def steps(state: MetaState, number: int, count: int) -> tuple[MetaState, list[Metrics]]:
        assert several is not None
        found: tuple[MetaState, list[Metrics]] = several(count, state, key, _number(device, number))
        return found

    return Executable(
        lambda number: _number(device, number),
        lambda state, number: run(state, key, number),
        None if several is None else steps,
    )


def _sampling_separate(
    wrap: Wrap, local: LocalStep, sample: StepSampler, key: Key, device: str
) -> Executable:
    number = _number(device, 0)
    traced = traceable(sample, key, number) if device.startswith("cuda") else None
    if traced is None:
        return Executable(lambda number: sample(key, _number(device, number)), wrap(local))
    # Its constants stay on the device: copying them makes the host wait.
    flat = interpret_unchanged(traced, [key, number])
    return Executable(lambda number: traced.whole(flat(key, _number(device, number))), wrap(local))


def _number(device: str, number: int) -> Tensor:
    """A step's number as a 0-d tensor: on CUDA written by a kernel, which the host does not wait
    for.
    """
    return torch.full((), number, dtype=torch.int64, device=device)


def _sharded(settings: Settings, tasks: int, count: int, total: Total) -> tuple[LocalStep, Step]:
    """(what a process computes from its `count` tasks, what the processes make of it together)."""
    method, executor, chunk, workers = settings
    assert method.update is not None
    update, packing, wrap = method.update, Packing(), wrap_of(executor)
    sums = (
        sums_in_pieces(method, piece_size(executor, chunk), wrap, workers)
        if in_pieces(executor, chunk)
        else sums_in_pieces(method, count, identity)
    )

    def local(state: MetaState, data: Any) -> tuple[Tensor, Any]:
        found, lanes = sums(state, data)
        return packing.pack(found), lanes

    def apply(state: MetaState, vector: Tensor) -> tuple[MetaState, Metrics]:
        grads, metrics = scale(packing.unpack(vector), 1 / tasks)
        return update(state, grads), metrics

    apply = wrap(apply)

    def combine(state: MetaState, found: tuple[Tensor, Any]) -> tuple[MetaState, Metrics]:
        vector, lanes = found
        state, metrics = apply(state._replace(lanes=None), total(vector))
        return state._replace(lanes=lanes), metrics

    return local, combine


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """(first, size) of a rank's share of `count` things; the first ranks take the remainder."""
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
