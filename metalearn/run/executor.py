"""The same pure step, run several ways; nothing outside run/ knows which.

loop            one task at a time, gradients summed: the reference
vmap            all tasks in one graph
chunk           vmap over pieces that fit memory
compiled        torch.compile over the whole step, meta-update included
compiled_loop   task_grad of one task compiled, looped over tasks
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.inner.method import stamped, widened
from metalearn.run.build import cores
from metalearn.run.sections import Run
from metalearn.run.traced import compiled
from metalearn.tree import add, leaves, mean_over_tasks, scale, stack, take, tree_map
from metalearn.types import Episode, MetaState, Method, Metrics

Step = Callable[[MetaState, Any], tuple[MetaState, Metrics]]
LONG = 1500  # meta-steps from which compiling a small whole step repays its 10 to 60 s on a CPU
MANY_TASKS = 8000  # tasks in a run from which compiling one task's gradient repays
SMALL = 50_000  # parameters below which Python and launch overhead is all there is


def choose(method: Method, run: Run, device: str, state: MetaState) -> tuple[str, str]:
    """(executor, why) for `auto`: a rule of thumb from measured runs; every name but auto is taken as it is."""
    if run.executor != "auto":
        return run.executor, "asked for"
    if method.task_grad is None and not (run.meta_steps >= LONG and compiler_found()):
        return "vmap", "one batch of examples is one graph already"
    if device.startswith("cuda"):
        return "vmap", "on a GPU all tasks fit one graph"
    convolutions = any(leaf.dim() == 4 for leaf in leaves(state.meta))
    if not compiler_found():
        return "vmap", "no C compiler was found for torch.compile"
    if run.meta_steps >= LONG and (_small(state) or method.task_grad is None):
        return "compiled", f"{run.meta_steps} steps: compiling the whole step repays"
    if convolutions and run.meta_steps * run.tasks_per_step >= MANY_TASKS:
        return "compiled", f"{run.meta_steps} steps of convolutions: compiling repays"
    if convolutions:
        return "chunk", f"a short run of convolutions on a CPU: {run.chunk} tasks at a time stay in its caches"
    return "vmap", "too short to repay compiling"


def good_threads(state: MetaState) -> int:
    """CPU threads when none are asked for: one for small models, whose work is too little to share; else every core."""
    return 1 if _small(state) else cores()


def _small(state: MetaState) -> bool:
    sizes = [leaf.numel() for leaf in leaves(state.meta)]
    return sum(sizes) < SMALL and not any(leaf.dim() == 4 for leaf in leaves(state.meta))


def compiler_found() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def make_step(method: Method, executor: str, chunk: int = 8) -> Step:
    """`method.step` under an executor; methods without task_grad have one step, eager or compiled."""
    if method.step is None:
        raise ValueError("this method learns nothing across tasks")
    if executor in ("compiled", "compiled_loop"):
        use_compiler_cache()
    if method.task_grad is None:
        return compiled(method.step) if executor == "compiled" else method.step
    if executor == "vmap":
        return method.step
    if executor == "chunk":
        return _chunked(method, chunk, _as_it_is)
    if executor == "compiled":
        return _compiled(method, chunk)
    task_grad = compiled(method.task_grad) if executor == "compiled_loop" else method.task_grad
    return _looped(method, task_grad)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _compiled(method: Method, chunk: int) -> Step:
    """The whole step in one graph where its tasks fit one piece; else the gradient of a piece, then the update."""
    assert method.step is not None
    whole, in_pieces = compiled(method.step), functools.cache(lambda size: _chunked(method, size, compiled))

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        tasks = episodes.support.x.shape[0]
        size = even(tasks, chunk)
        return (whole if tasks <= size else in_pieces(size))(state, episodes)

    return step


def even(tasks: int, chunk: int) -> int:
    """The size of pieces near `chunk` (half to twice) that divides `tasks`, so that one graph serves; or `chunk`."""
    near = [size for size in range((chunk + 1) // 2, 2 * chunk + 1) if tasks % size == 0]
    return min(near, key=lambda size: abs(size - chunk), default=chunk)


def _looped(method: Method, task_grad: Callable[..., Any]) -> Step:
    assert method.update is not None
    update = method.update

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        episodes = stamped(episodes, state.step)
        tasks = episodes.support.x.shape[0]
        state = widened(state, tasks)
        total, found, lanes = None, [], []
        for task in range(tasks):
            episode = take(episodes, task)
            if state.lanes is None:
                grads, metrics = task_grad(state.meta, episode)
            else:
                grads, metrics, lane = task_grad(state.meta, episode, take(state.lanes, task))
                lanes.append(lane)
            total = grads if total is None else add(total, grads)
            found.append(metrics)
        if lanes:
            state = state._replace(lanes=stack(lanes))
        return update(state, scale(total, 1 / tasks)), mean_over_tasks(stack(found))

    return step


def _chunked(method: Method, chunk: int, compile: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Step:
    assert method.update is not None and method.task_grad is not None
    task_grad, update = method.task_grad, compile(method.update)

    def summed(meta: Any, piece: Episode, lanes: Any, share: Tensor) -> tuple[Any, Metrics, Any]:
        """Gradients and metrics of a piece, summed and scaled by one task's share; and its lanes."""
        if lanes is None:
            grads, metrics = torch.func.vmap(task_grad, in_dims=(None, 0))(meta, piece)
        else:
            grads, metrics, lanes = torch.func.vmap(task_grad, in_dims=(None, 0, 0))(meta, piece, lanes)
        return (*tree_map(lambda x: x.sum(0) * share, (grads, metrics)), lanes)

    of_piece = compile(summed)

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        episodes = stamped(episodes, state.step)
        tasks = episodes.support.x.shape[0]
        state, share = widened(state, tasks), torch.full_like(state.step, 1 / tasks)
        total, lanes = None, []
        for begin in range(0, tasks, chunk):
            own = None if state.lanes is None else take(state.lanes, slice(begin, begin + chunk))
            *found, lane = of_piece(state.meta, take(episodes, slice(begin, begin + chunk)), own, share)
            total = tuple(found) if total is None else add(total, tuple(found))
            lanes.append(lane)
        if state.lanes is not None:
            state = state._replace(lanes=_joined(lanes))
        assert total is not None
        return update(state, total[0]), total[1]

    return step


def _joined(parts: list[Any]) -> Any:
    return tree_map(lambda *xs: torch.cat(xs), *parts)


def use_compiler_cache() -> None:
    """Keep compiled code between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "metalearn" / "compiler"))
