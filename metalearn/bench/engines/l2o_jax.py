"""Unrolled training of a learned optimizer in JAX: lax.scan over steps, vmap over tasks, jit.

The gradient is that of the mean over tasks, so that theta's is summed inside: what one would write
in JAX."""

from __future__ import annotations

from typing import Any

from metalearn.bench.engines import by_jax
from metalearn.bench.engines.engine import Engine
from metalearn.bench.engines.l2o import PREPROCESS, SCALE, InnerProblems, LearnedProblem
from metalearn.types import Episode, Params


def engine(problem: LearnedProblem) -> Engine:
    """Return meta-gradient and Adam in one jitted function of the state and of ready problems."""
    from metalearn.bench.engines import jax_models as models

    j = by_jax.load(problem.device)
    params = {name: models.to_jax(j, value) for name, value in problem.start.items()}

    def arrays(problems: InnerProblems) -> Any:
        x, y = problems.x.flatten(2).numpy(), problems.y.numpy()
        y = y if problems.y.is_floating_point() else y.astype("int32")
        starts = {name: j.np.asarray(value.numpy()) for name, value in problems.starts.items()}
        return j.np.asarray(x), j.np.asarray(y), starts

    ready = [arrays(problems) for problems in problem.ready_problems]
    task_loss = unrolled(j, problem)

    def mean(theta: Any, problems: Any) -> Any:
        return j.jax.vmap(task_loss, (None, 0, 0, 0))(theta, *problems).mean()

    def learn(state: Any, problems: Any) -> Any:
        return by_jax.adam(j, state, j.jax.grad(mean)(state[1], problems))

    compiled = j.jax.jit(learn)
    state, number = by_jax.begin(j, params), 0

    def step() -> None:
        nonlocal state, number
        number += 1
        state = compiled(state, ready[number % len(ready)])

    def gradient(episodes: Episode) -> Params:
        first = compiled(by_jax.begin(j, params), arrays(problem.plain(episodes)))[2]
        return {name: models.from_jax(name, value) / 0.1 for name, value in first.items()}

    form = "jit, scan + vmap"
    return Engine(step, gradient, lambda: j.jax.block_until_ready(state) and None, form)


def unrolled(j: Any, problem: LearnedProblem) -> Any:
    """Return a function (theta, x, y, start) of one task -> its mean loss over steps."""
    loss, steps, hidden = _loss(j, problem), problem.workload.inner_steps, 20

    def mean_loss(theta: Any, x: Any, y: Any, start: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, memory = carry
            grads = j.lax.stop_gradient(j.jax.grad(loss)(params, x, y))
            params_after, memory_after = {}, {}
            for name in params:
                update, memory_after[name] = _lstm(j, theta, grads[name].reshape(-1), memory[name])
                params_after[name] = params[name] + update.reshape(params[name].shape)
            return (params_after, memory_after), loss(params_after, x, y)

        zeros = {name: (j.np.zeros((value.size, hidden)),) * 4 for name, value in start.items()}
        _, losses = j.lax.scan(step, (start, zeros), None, length=steps)
        return losses.mean()

    return mean_loss


def _loss(j: Any, problem: LearnedProblem) -> Any:
    def quadratic(params: Any, x: Any, y: Any) -> Any:
        return j.np.square(x @ params["point"] - y[:, 0]).mean()

    def network(params: Any, x: Any, y: Any) -> Any:
        hidden = j.nn.sigmoid(x @ params["layers.0.weight"].T + params["layers.0.bias"])
        logits = hidden @ params["head.weight"].T + params["head.bias"]
        return -j.np.take_along_axis(j.nn.log_softmax(logits), y[:, None], 1).mean()

    return quadratic if problem.source.spec.objective else network


def _lstm(j: Any, theta: Any, grad: Any, memory: Any) -> Any:
    """Return (update [n], memory) of one step of the rule on one tensor [n]."""
    size, edge = j.np.abs(grad), j.np.exp(-PREPROCESS)
    large = size >= edge
    log = j.np.where(large, j.np.log(j.np.where(large, size, 1.0)) / PREPROCESS, -1.0)
    sign = j.np.where(large, j.np.sign(grad), j.np.exp(PREPROCESS) * grad)
    x, states = j.np.stack([log, sign], -1), []
    for layer in range(2):
        h, c = memory[2 * layer], memory[2 * layer + 1]
        gates = (
            j.np.concatenate([x, h], -1) @ theta[f"lstm.{layer}.weight"].T
            + theta[f"lstm.{layer}.bias"]
        )
        let_in, keep, let_out, new = j.np.split(gates, 4, -1)
        c = j.nn.sigmoid(keep) * c + j.nn.sigmoid(let_in) * j.np.tanh(new)
        x = j.nn.sigmoid(let_out) * j.np.tanh(c)
        states += [x, c]
    update = SCALE * (x @ theta["out.weight"].T + theta["out.bias"])
    return update[:, 0], tuple(states)
