"""The sum of meta-gradients over tasks, computed in chunks and added up in a fixed order.

    g = g_1 + ... + g_P,   g_p the sum over the tasks of chunk p

Chunks are computed by Python threads with one intra-op thread each. No operator then waits for a
thread that the system has suspended, and the bits depend on the chunks alone: neither on the number
of threads nor on the load of the machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


def sum_in_chunks(
    method: Method, size: int, transform: Transform, workers: int | None = None
) -> Sums:
    """The function that sums over the tasks of episodes, in chunks of `size` tasks.

    `workers` threads compute the chunks; without `workers`, and on CUDA, the calling thread
    computes them one after another."""
    assert method.task_grad is not None
    sum_chunk = transform(partial(_one_task if size == 1 else _some_tasks, method.task_grad))

    def sums(state: MetaState, episodes: Episode) -> tuple[Any, Any]:
        episodes = with_step(episodes, state.step)
        tasks = episodes.support.x.shape[0]
        state = broadcast_task_state(state, tasks)

        def sum_from(first: int) -> Any:
            chunk = slice(first, first + size)
            lanes = None if state.lanes is None else take(state.lanes, chunk)
            return sum_chunk(state.meta, take(episodes, chunk), lanes)

        total, all_lanes = None, []
        on_cpu = leaves(state.meta)[0].device.type == "cpu"
        with _map(sum_from, range(0, tasks, size), workers if on_cpu else None) as chunks:
            for grads, metrics, lanes in chunks:
                total = (grads, metrics) if total is None else add(total, (grads, metrics))
                all_lanes.append(lanes)
        if state.lanes is None:
            return total, None
        return total, tree_map(lambda *parts: torch.cat(parts), *all_lanes)

    return sums


def workers_on(device: str, number: int | None) -> int:
    """Threads that compute chunks: on a CPU those asked for, or as many as torch's; else one."""
    return 1 if device.startswith("cuda") else number or torch.get_num_threads()


@contextmanager
def _map(
    function: Callable[[int], Any], firsts: Iterable[int], workers: int | None
) -> Iterator[Iterator[Any]]:
    """A context with the results of `function` in the order of `firsts`.

    While the workers compute, the calling thread has one intra-op thread too: a parallel sum of two
    results would wait for cores that they use."""
    threads = torch.get_num_threads()
    if workers is None or (workers == 1 and threads == 1):
        yield map(function, firsts)
        return
    torch.set_num_threads(1)
    try:
        yield _pool(workers).map(function, firsts)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that last as long as the process; torch counts intra-op threads for each of them."""
    return ThreadPoolExecutor(workers, "metalearn-chunk", torch.set_num_threads, (1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _some_tasks(
    task_grad: Callable[..., Any], meta: Any, chunk: Episode, lanes: Any
) -> tuple[Any, Metrics, Any]:
    """Sums over a chunk [c, ...] of gradients and metrics, and its lanes after the step."""
    grads, metrics, lanes = per_task_grads(task_grad, meta, chunk, lanes)
    grads, metrics = tree_map(lambda x: x.sum(0), (grads, metrics))
    return grads, metrics, lanes


def _one_task(
    task_grad: Callable[..., Any], meta: Any, chunk: Episode, lanes: Any
) -> tuple[Any, Metrics, Any]:
    """The same for a chunk of one task [1, ...], without vmap."""
    if lanes is None:
        return (*task_grad(meta, take(chunk, 0)), None)
    grads, metrics, lane = task_grad(meta, take(chunk, 0), take(lanes, 0))
    return grads, metrics, stack([lane])
