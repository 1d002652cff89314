"""The same pure step, run in several ways: the executors by name.

loop            one task at a time, gradients summed: the reference
vmap            all tasks in one graph
traced          vmap, its operations recorded once as a torch.fx graph and then interpreted, without
                the cost of Python and function transforms
chunk           vmap over chunks of `chunk` tasks
compiled        the whole step as one compiled graph, meta-update (and cheap sampling) included;
                with `chunk`, the gradient of one chunk compiled
compiled_loop   the gradient of one task compiled, one task at a time
compiled_steps  vmap, each inner step one compiled function, forward and backward: for long loops
graph           CUDA: the whole step, sampling included, captured once and replayed
compiled_graph  CUDA: the same of the compiled step

On a CPU the chunks of loop, chunk, compiled with `chunk` and compiled_loop are computed by
`workers` threads (chunks.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from metalearn.executors.chunks import Transform, identity, sum_in_chunks
from metalearn.executors.cuda_graphs import captured, captured_steps
from metalearn.executors.simplify import interpret_function
from metalearn.executors.trace import compile_function
from metalearn.inner.stepwise import stepwise
from metalearn.tree import scale
from metalearn.types import Episode, MetaState, Method, Metrics

Step = Callable[[MetaState, Any], tuple[MetaState, Metrics]]
# default number of tasks in a chunk: the activations of their convolutions fit a CPU's caches
CHUNK = 4
COMPILED = ("compiled", "compiled_loop", "compiled_steps", "compiled_graph")
CAPTURED = ("graph", "compiled_graph")
WHOLE = (*CAPTURED, "traced")  # all tasks at once, never in chunks


def why_not(executor: str, device: str, chunk: int | None = None) -> str | None:
    """Why an executor cannot run on this machine: a sentence, or None where it can."""
    if executor in CAPTURED and not device.startswith("cuda"):
        return f"{executor} needs a CUDA device (got {device}): use compiled or auto"
    if executor in WHOLE and chunk is not None:
        return (
            f"{executor} computes all tasks of a step at once: omit run.chunk, or "
            f"use chunk or compiled"
        )
    if executor in COMPILED and not device.startswith("cuda") and not compiler_found():
        return (
            f"{executor} needs a C++ compiler (g++ or clang++), but none was found: install "
            f"one, or use vmap"
        )
    return None


def compiler_found() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def is_chunked(executor: str, chunk: int | None) -> bool:
    """Whether an executor computes the gradients of a step chunk by chunk."""
    return executor in ("loop", "compiled_loop", "chunk") or (
        executor == "compiled" and chunk is not None
    )


def chunk_size(executor: str, chunk: int | None) -> int:
    """Tasks in a chunk."""
    return (chunk or CHUNK) if executor in ("chunk", "compiled") else 1


def get_transform(executor: str) -> Transform:
    """The function transform of an executor: from a function of tensors to one that it runs."""
    if executor in CAPTURED:
        return partial(captured, compiling=executor in COMPILED)
    if executor == "traced":
        return interpret_function
    if executor == "compiled_steps":
        return compile_inner_steps
    return compile_function if executor in COMPILED else identity


def get_multi_step_transform(executor: str) -> Transform:
    """The transform of an executor for a training step.

    That of `get_transform`, except for CUDA graphs: `captured_steps`, which gets a function (state,
    key, step index) -> (state, metrics) and can also run several steps in one graph."""
    if executor in CAPTURED:
        return partial(captured_steps, compiling=executor in COMPILED)
    return get_transform(executor)


def make_step(
    method: Method, executor: str, chunk: int | None = None, workers: int | None = None
) -> Step:
    """`method.step` under an executor; a method without `task_grad` is never run in chunks.

    `chunk` is the number of tasks in a chunk under `chunk` (default 4) and `compiled` (default: all
    tasks), `workers` the number of threads that compute chunks (chunks.py)."""
    if method.step is None:
        raise ValueError("this method learns nothing across tasks")
    transform = get_transform(executor)
    if method.task_grad is None or not is_chunked(executor, chunk):
        return transform(method.step)
    assert method.update is not None
    size, update = chunk_size(executor, chunk), method.update
    sums = sum_in_chunks(method, size, transform, workers)

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        total, lanes = sums(state, episodes)
        grads, metrics = scale(total, 1 / episodes.support.x.shape[0])
        return update(state._replace(lanes=lanes), grads), metrics

    return step


def compile_inner_steps(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, each inner step of which is one call of a compiled function."""

    def run(*args: Any) -> Any:
        with stepwise(compile_function):
            return function(*args)

    return run
