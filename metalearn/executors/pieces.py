"""The sum of meta-gradients over tasks, made piece by piece and added up in a fixed order.

    g = g_1 + ... + g_P,   g_p the sum over the tasks of piece p

Pieces are computed by Python threads with one intra-op thread each. No operator then waits for a
thread that the system has put aside, and the bits depend on the pieces alone: neither on the number
of threads nor on what else the machine does."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from metalearn.inner.method import broadcast_task_state, per_task_grads, with_step
from metalearn.tree import add, leaves, stack, take, tree_map
from metalearn.types import Episode, MetaState, Method, Metrics

Transform = Callable[[Callable[..., Any]], Callable[..., Any]]
# (state, episodes [T, ...]) -> ((gradients, metrics) summed over tasks, lanes [T, ...])
Sums = Callable[[MetaState, Episode], tuple[Any, Any]]


def identity(value: Any) -> Any:
    return value


def sums_in_pieces(
    method: Method, chunk: int, transform: Transform, workers: int | None = None
) -> Sums:
    """Sums over the tasks of episodes, in pieces of `chunk` tasks, by `workers` threads.

    Without `workers`, and on CUDA, the calling thread computes the pieces one after another.
    """
    assert method.task_grad is not None
    of_piece = transform(partial(_one_task if chunk == 1 else _some_tasks, method.task_grad))

    def sums(state: MetaState, episodes: Episode) -> tuple[Any, Any]:
        episodes = with_step(episodes, state.step)
        tasks = episodes.support.x.shape[0]
        state = broadcast_task_state(state, tasks)

        def piece(begin: int) -> Any:
            place = slice(begin, begin + chunk)
            own = None if state.lanes is None else take(state.lanes, place)
            return of_piece(state.meta, take(episodes, place), own)

        total, lanes = None, []
        on_cpu = leaves(state.meta)[0].device.type == "cpu"
        for *found, after in _map(piece, range(0, tasks, chunk), workers if on_cpu else None):
            total = tuple(found) if total is None else add(total, tuple(found))
            lanes.append(after)
        if state.lanes is None:
            return total, None
        return total, tree_map(lambda *parts: torch.cat(parts), *lanes)

    return sums


def workers_on(device: str, number: int | None) -> int:
    """Threads that compute pieces: on a CPU those asked for, or as many as torch's; else one."""
    return 1 if device.startswith("cuda") else number or torch.get_num_threads()


def _map(
    function: Callable[[int], Any], places: Iterable[int], workers: int | None
) -> Iterator[Any]:
    """The results of `function` in the order of `places`."""
    if workers is None or (workers == 1 and torch.get_num_threads() == 1):
        return map(function, places)
    return _pool(workers).map(function, places)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that last as long as the process; torch counts intra-op threads for each of them."""
    return ThreadPoolExecutor(workers, "metalearn-piece", torch.set_num_threads, (1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _some_tasks(
    task_grad: Callable[..., Any], meta: Any, piece: Episode, lanes: Any
) -> tuple[Any, Metrics, Any]:
    """Sums over a piece [c, ...] of gradients and metrics, and its lanes after."""
    grads, metrics, lanes = per_task_grads(task_grad, meta, piece, lanes)
    grads, metrics = tree_map(lambda x: x.sum(0), (grads, metrics))
    return grads, metrics, lanes


def _one_task(
    task_grad: Callable[..., Any], meta: Any, piece: Episode, lanes: Any
) -> tuple[Any, Metrics, Any]:
    """The same of a piece of one task [1, ...], without vmap."""
    if lanes is None:
        return (*task_grad(meta, take(piece, 0)), None)
    grads, metrics, lane = task_grad(meta, take(piece, 0), take(lanes, 0))
    return grads, metrics, stack([lane])
