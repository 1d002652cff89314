"""The same pure step, run several ways; nothing outside run/ knows which.

loop            one task at a time, gradients summed: the reference
vmap            all tasks in one graph
traced          the operations of vmap, written down once and run one after another, without the
cost of transforms
chunk           vmap over pieces of `chunk` tasks
compiled        the whole step as one compiled graph, meta-update (and cheap sampling) included; of
more than `chunk`
                tasks the gradient of one piece, run over the pieces
compiled_loop   the gradient of one task compiled, one task at a time
compiled_steps  vmap, each inner step of which is one compiled function, forward and backward: for
long inner loops
graph           CUDA: the whole step, sampling included, captured once and replayed
compiled_graph  CUDA: the same of the compiled step
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.executors.allocator import keep_freed_memory
from metalearn.executors.cuda_graphs import captured
from metalearn.executors.simplify import one_by_one
from metalearn.executors.trace import by_shapes, compiled, interpreted, light, traceable
from metalearn.inner.method import stamped, widened
from metalearn.inner.stepwise import stepwise
from metalearn.rng import fold_in
from metalearn.tree import add, scale, stack, take, tree_map
from metalearn.types import Episode, Key, MetaState, Method, Metrics

Step = Callable[[MetaState, Any], tuple[MetaState, Metrics]]
Draw = Callable[[Key], Any]  # what one step consumes
Advance = Callable[
    [MetaState, int], tuple[MetaState, Metrics]
]  # the data of step number n drawn, and the step made
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Sums = Callable[[MetaState, Episode], tuple[Any, Any]]
# tasks in a piece where nobody says otherwise: so many convolutions' activations stay in a CPU's
# caches
CHUNK = 4
COMPILED = ("compiled", "compiled_loop", "compiled_steps", "compiled_graph")
CAPTURED = ("graph", "compiled_graph")
WHOLE = (*CAPTURED, "traced")  # all tasks at once, never in pieces


def why_not(executor: str, device: str, chunk: int | None = None) -> str | None:
    """Why an executor cannot run on this machine: a sentence, or None where it can."""
    if executor in CAPTURED and not device.startswith("cuda"):
        return (
            f"{executor} captures work of a CUDA device, and the device is {device}: use "
            f"compiled, or auto"
        )
    if executor in WHOLE and chunk is not None:
        return (
            f"{executor} takes a whole step of all tasks at once: leave run.chunk out, or "
            f"use chunk or compiled"
        )
    if executor in COMPILED and not device.startswith("cuda") and not compiler_found():
        return (
            f"{executor} needs a C++ compiler (g++ or clang++), and none was found: install "
            f"one, or use vmap"
        )
    return None


def compiler_found() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def make_step(method: Method, executor: str, chunk: int | None = None) -> Step:
    """`method.step` under an executor; methods without task_grad have one step, eager, compiled or
    captured.

    `chunk` is the number of tasks in a piece of `chunk` (default 4) and of `compiled` (default: all
    tasks)."""
    if method.step is None:
        raise ValueError("this method learns nothing across tasks")
    if executor in CAPTURED:
        return captured(method.step, compiling=executor in COMPILED)
    if executor == "traced":
        return by_shapes(method.step, one_by_one)
    if executor == "compiled_steps":
        return by_steps(method.step)
    if method.task_grad is None or executor == "vmap":
        return compiled(method.step) if executor in COMPILED else method.step
    if executor == "compiled":
        return compiled(method.step) if chunk is None else _whole_or_pieces(method, chunk)
    if executor == "chunk":
        return _in_pieces(method, chunk or CHUNK, as_it_is)
    return _in_pieces(method, 1, compiled if executor in COMPILED else as_it_is)


def make_advance(
    method: Method,
    draw: Draw,
    key: Key,
    tasks: int,
    device: str,
    executor: str,
    chunk: int | None = None,
) -> Advance:
    """(state, n) -> (state, metrics): what step n learns from, `draw(fold_in(key, n))`, is drawn,
    and the step made.

    Where a whole step is one graph, sampling belongs to it: always under CUDA graphs, under the
    compiler where the data are computed rather than stored.
    """
    key = key.to(device)
    if not device.startswith("cuda"):
        keep_freed_memory()
    whole = executor in COMPILED and (method.task_grad is None or chunk is None or tasks <= chunk)
    whole = (whole and executor not in ("compiled_loop", "compiled_steps")) or executor == "traced"
    inside = executor in CAPTURED or (whole and light(draw, key))
    if inside:
        return _with_sampling(method, draw, key, device, executor)
    if device.startswith("cuda") and traceable(draw, key) is not None:
        draw = by_shapes(
            draw, interpreted
        )  # its constants stay on the device: copying them makes the host wait
    step = make_step(method, executor, chunk)
    return lambda state, number: step(state, draw(fold_in(key, number_on(device, number))))


def number_on(device: str, number: int) -> Tensor:
    """A step's number as a 0-d tensor: on CUDA written by a kernel, which the host does not wait
    for.
    """
    return torch.full((), number, dtype=torch.int64, device=device)


def _with_sampling(method: Method, draw: Draw, key: Key, device: str, executor: str) -> Advance:
    assert method.step is not None
    step = method.step

    def whole(state: MetaState, key: Key, number: Tensor) -> tuple[MetaState, Metrics]:
        return step(state, draw(fold_in(key, number)))

    if executor in CAPTURED:
        run = captured(whole, compiling=executor in COMPILED)
    else:
        twin = (step, draw)
        run = by_shapes(whole, one_by_one, twin) if executor == "traced" else compiled(whole, twin)
    return lambda state, number: run(state, key, number_on(device, number))


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def by_steps(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with each inner step inside it as one compiled function."""

    def run(*args: Any) -> Any:
        with stepwise(compiled):
            return function(*args)

    return run


def _whole_or_pieces(method: Method, chunk: int) -> Step:
    assert method.step is not None
    whole, pieces = compiled(method.step), _in_pieces(method, chunk, compiled)

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        return (whole if episodes.support.x.shape[0] <= chunk else pieces)(state, episodes)

    return step


def _in_pieces(method: Method, chunk: int, wrap: Wrap) -> Step:
    """Gradients piece by piece, their sum, then the update; only `chunk` tasks are
    alive at once.
    """
    assert method.update is not None
    sums, update = sums_in_pieces(method, chunk, wrap), method.update

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        total, lanes = sums(state, episodes)
        grads, metrics = scale(total, 1 / episodes.support.x.shape[0])
        return update(state._replace(lanes=lanes), grads), metrics

    return step


def sums_in_pieces(method: Method, chunk: int, wrap: Wrap) -> Sums:
    """((gradients, metrics), lanes) of episodes: sums over their tasks, made of pieces of `chunk`
    tasks.
    """
    assert method.task_grad is not None
    of_piece = wrap(partial(_alone if chunk == 1 else _together, method.task_grad))

    def sums(state: MetaState, episodes: Episode) -> tuple[Any, Any]:
        episodes = stamped(episodes, state.step)
        tasks = episodes.support.x.shape[0]
        state = widened(state, tasks)
        total, lanes = None, []
        for begin in range(0, tasks, chunk):
            place = slice(begin, begin + chunk)
            own = None if state.lanes is None else take(state.lanes, place)
            *found, after = of_piece(state.meta, take(episodes, place), own)
            total = tuple(found) if total is None else add(total, tuple(found))
            lanes.append(after)
        return total, None if state.lanes is None else tree_map(
            lambda *parts: torch.cat(parts), *lanes
        )

    return sums


def _together(
    task_grad: Callable[..., Any], meta: Any, piece: Episode, lanes: Any
) -> tuple[Any, Metrics, Any]:
    """Sums over a piece [c, ...] of gradients and metrics, and its lanes after."""
    if lanes is None:
        grads, metrics = torch.func.vmap(task_grad, in_dims=(None, 0))(meta, piece)
    else:
        grads, metrics, lanes = torch.func.vmap(task_grad, in_dims=(None, 0, 0))(meta, piece, lanes)
    grads, metrics = tree_map(lambda x: x.sum(0), (grads, metrics))
    return grads, metrics, lanes


def _alone(
    task_grad: Callable[..., Any], meta: Any, piece: Episode, lanes: Any
) -> tuple[Any, Metrics, Any]:
    """The same of a piece of one task [1, ...], without vmap."""
    if lanes is None:
        return (*task_grad(meta, take(piece, 0)), None)
    grads, metrics, lane = task_grad(meta, take(piece, 0), take(lanes, 0))
    return grads, metrics, stack([lane])
