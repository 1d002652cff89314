"""The transformer neural process in JAX: one task's loss under vmap, its gradient under jit."""

from __future__ import annotations

import math
from typing import Any

from metalearn.bench.engines import by_jax
from metalearn.bench.engines import jax_models as models
from metalearn.bench.engines.engine import Engine
from metalearn.bench.engines.in_context import FLOOR, KIND, InContextProblem

EPS = 1e-5  # of torch's layer norm


def engine(problem: InContextProblem) -> Engine:
    """Return meta-gradient and Adam in one jitted function; waves are sampled inside."""
    j, work = by_jax.load(problem.device), problem.workload
    params = {name: models.to_jax(j, value) for name, value in problem.start.items()}
    loss = task_loss(j, problem)

    def mean(params: Any, episodes: Any) -> Any:
        return j.jax.vmap(loss, (None, 0, 0, 0, 0))(params, *episodes).mean()

    make = by_jax.sampling_inside if work.regression else by_jax.whole
    return make(j, problem, j.jax.grad(mean), params)


def task_loss(j: Any, problem: InContextProblem) -> Any:
    """Return a function (params, sx, sy, qx, qy) of one task -> its loss."""
    work = problem.workload

    def loss(params: Any, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        body = {name[7:]: p for name, p in params.items() if name.startswith("params.")}
        context = {name[8:]: p for name, p in params.items() if name.startswith("context.")}
        z, query = (models.features(j, work, body, x) for x in (sx, qx))
        codes = sy if work.regression else j.nn.one_hot(sy, work.outputs)
        outputs = _predict(j, context, z, codes, query)
        if not work.regression:
            return models.criterion(j, work, outputs, qy)
        mean, raw = j.np.split(outputs, 2, -1)
        deviation = FLOOR + j.nn.softplus(raw)
        nll = j.np.log(deviation) + j.np.square((qy - mean) / deviation) / 2
        return nll.mean() + math.log(2 * math.pi) / 2

    return loss


def _predict(j: Any, p: Any, z: Any, codes: Any, query: Any) -> Any:
    """Predict from support features [B, .], codes [B, .], query features [M, .] -> [M, outputs]."""
    x = _stack(j, p, "token", j.np.concatenate([z, codes, j.np.zeros((len(z), 1))], -1))
    blank, ones = j.np.zeros((len(query), codes.shape[-1])), j.np.ones((len(query), 1))
    q = _stack(j, p, "token", j.np.concatenate([query, blank, ones], -1))
    for index in range(KIND.layers):
        name = f"layers.{index}"
        before = _norm(j, p, f"{name}.before", x)
        memory = before @ p[f"{name}.key.weight"].T, _linear(p, f"{name}.value", before)
        q = _block(j, p, name, q, memory)
        if index + 1 < KIND.layers:
            x = _block(j, p, name, x, memory)
    return _stack(j, p, "out", _norm(j, p, "last", q))


def _block(j: Any, p: Any, name: str, x: Any, memory: Any) -> Any:
    queries = _linear(p, f"{name}.query", _norm(j, p, f"{name}.before", x))
    q, k, v = (_by_head(part) for part in (queries, *memory))
    weights = j.nn.softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]))
    attended = (weights @ v).transpose(1, 0, 2).reshape(x.shape)
    x = x + _linear(p, f"{name}.out", attended)
    return x + _stack(j, p, f"{name}.mlp", _norm(j, p, f"{name}.between", x))


def _by_head(x: Any) -> Any:
    """[L, D] -> [H, L, D/H]."""
    return x.reshape(len(x), KIND.heads, -1).transpose(1, 0, 2)


def _linear(p: Any, name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _stack(j: Any, p: Any, name: str, x: Any) -> Any:
    index = 0
    while f"{name}.{index}.weight" in p:
        x = _linear(p, f"{name}.{index}", j.np.maximum(x, 0) if index else x)
        index += 1
    return x


def _norm(j: Any, p: Any, name: str, x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    var = j.np.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * j.lax.rsqrt(var + EPS) * p[f"{name}.weight"] + p[f"{name}.bias"]
