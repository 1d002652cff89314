"""JAX: the same models with lax.conv, the same normalisation and Adam, everything under jit.

On a CPU a convolution whose weights differ from task to task is slow when vmap makes groups of
them, and slower inside lax.scan or lax.map (measured on jax 0.10.2, Conv4-64 pooled, 28 x 28,
second order: 0.10 s per task with vmap, 0.24 to 0.39 with scan, 0.04 as one jitted function of one
task that Python calls T times). So there the last form is timed; the MLP, ProtoNet and every
model on a GPU run as one jitted step with vmap over tasks."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch

from metalearn.bench.engines import jax_models as models
from metalearn.bench.engines.engine import Engine, LeftOut, package
from metalearn.bench.problem import OUTER_LR, Problem
from metalearn.types import Episode, Params


def engine(problem: Problem) -> Engine:
    """Return the form that is fastest on this device.

    Raises LeftOut if JAX is missing or has no such device."""
    work = problem.workload
    if work.model == "resnet12" or work.family in ("imaml", "r2d2"):
        raise LeftOut("jax: no example of its packages has this workload")
    j = load(problem.device)
    params = {name: models.to_jax(j, value) for name, value in problem.start.items()}
    task_grad = j.jax.grad(models.task_loss(j, work))
    if work.model == "conv4" and work.family == "maml" and problem.device == "cpu":
        return _by_task(j, problem, task_grad, params)

    def meta_gradient(params: Any, episodes: Any) -> Any:
        grads = j.jax.vmap(task_grad, (None, 0, 0, 0, 0))(params, *episodes)
        return j.jax.tree.map(lambda g: g.mean(0), grads)

    return (sampling_inside if work.regression else whole)(j, problem, meta_gradient, params)


def load(device: str) -> SimpleNamespace:
    """Return JAX and the parts of it that are used, on this device."""
    # else it takes most of a GPU's memory at once
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = package("jax")
    platform = "gpu" if device.startswith("cuda") else "cpu"
    try:
        jax_device = jax.devices(platform)[0]
    except RuntimeError as error:
        raise LeftOut(f"this jax has no {platform}: {error}") from error
    jax.config.update("jax_default_device", jax_device)
    if platform == "gpu":
        full_precision = getattr(torch.backends, "fp32_precision", "") != "tf32"
        jax.config.update(
            "jax_default_matmul_precision", "highest" if full_precision else "tensorfloat32"
        )
    return SimpleNamespace(
        jax=jax, np=package("jax.numpy"), lax=package("jax.lax"), nn=package("jax.nn")
    )


def adam(j: Any, state: Any, grads: Any) -> Any:
    """Return (count, params, first, second) after one step of Adam as in torch."""
    count, params, first, second = state
    count = count + 1
    first = j.jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = j.jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    a, b = 1 - 0.9**count, 1 - 0.999**count
    params = j.jax.tree.map(
        lambda p, m, v: p - OUTER_LR * (m / a) / (j.np.sqrt(v / b) + 1e-8), params, first, second
    )
    return count, params, first, second


def begin(j: Any, params: Any) -> Any:
    zeros = j.jax.tree.map(j.np.zeros_like, params)
    return j.np.zeros((), j.np.float32), params, zeros, zeros


def sampling_inside(j: Any, problem: Problem, meta_gradient: Any, params: Any) -> Engine:
    """Return waves, meta-gradient and update in one jitted function of the state."""
    key = j.jax.random.key(0)
    draw = models.waves(j, problem.workload)

    def learn(state: Any) -> Any:
        return adam(
            j, state, meta_gradient(state[1], draw(j.jax.random.fold_in(key, state[0].astype(int))))
        )

    return _engine(
        j, j.jax.jit(learn), j.jax.jit(meta_gradient), params, lambda number: (), "jit + vmap"
    )


def whole(j: Any, problem: Problem, meta_gradient: Any, params: Any) -> Engine:
    """Return meta-gradient and update in one jitted function of the state and of episodes sampled
    in advance."""
    ready = [models.arrays(j, episodes) for episodes in problem.ready]

    def learn(state: Any, episodes: Any) -> Any:
        return adam(j, state, meta_gradient(state[1], episodes))

    compiled = j.jax.jit(learn)

    def gradient(params: Any, episodes: Any) -> Any:
        first = compiled(begin(j, params), episodes)[2]
        return j.jax.tree.map(lambda value: value / 0.1, first)

    return _engine(
        j, compiled, gradient, params, lambda number: (ready[number % len(ready)],), "jit + vmap"
    )


def _by_task(j: Any, problem: Problem, task_grad: Any, params: Any) -> Engine:
    """Return the jitted sum of task gradients, called T times by Python, and the jitted update."""
    tasks = problem.workload.tasks
    ready = [_split_tasks(models.arrays(j, episodes), tasks) for episodes in problem.ready]

    def accumulate(total: Any, params: Any, episode: Any) -> Any:
        return j.jax.tree.map(j.np.add, total, task_grad(params, *episode))

    add = j.jax.jit(accumulate)
    update = j.jax.jit(
        lambda state, total: adam(j, state, j.jax.tree.map(lambda g: g / tasks, total))
    )
    zeros = j.jax.tree.map(j.np.zeros_like, params)

    def sum_of_gradients(params: Any, episodes: Any) -> Any:
        total = zeros
        for episode in episodes:
            total = add(total, params, episode)
        return total

    def gradient(params: Any, episodes: Any) -> Any:
        return j.jax.tree.map(
            lambda g: g / tasks, sum_of_gradients(params, _split_tasks(episodes, tasks))
        )

    def learn(state: Any, episodes: Any) -> Any:
        return update(state, sum_of_gradients(state[1], episodes))

    return _engine(
        j, learn, gradient, params, lambda number: (ready[number % len(ready)],), "jit a task"
    )


def _split_tasks(episodes: Any, tasks: int) -> list[Any]:
    """Split leaves [T, ...] into a list of T pytrees without that axis."""
    return [tuple(part[task] for part in episodes) for task in range(tasks)]


def _engine(
    j: Any, learn: Any, gradient: Any, params: Any, get_arguments: Any, form: str
) -> Engine:
    state = begin(j, params)
    number = 0

    def step() -> None:
        nonlocal state, number
        number += 1
        state = learn(state, *get_arguments(number))

    def meta_gradient(episodes: Episode) -> Params:
        grads = gradient(params, models.arrays(j, episodes))
        return {name: models.from_jax(name, value) for name, value in grads.items()}

    return Engine(step, meta_gradient, lambda: j.jax.block_until_ready(state) and None, form)
