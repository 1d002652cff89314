"""The models and the meta-gradient in JAX: images and weights channels last, as XLA likes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.bench.workloads import Workload
from metalearn.types import Episode

EPS = 1e-5  # of torch's batch norm


def to_jax(j: Any, value: Tensor) -> Any:
    """Convert a parameter; weights of a convolution [F, C, k, k] become [k, k, C, F]."""
    array = value.detach().cpu().numpy()
    return j.np.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def from_jax(name: str, value: Any) -> Tensor:
    """Convert back, the inverse of `to_jax`."""
    array = np.asarray(value)
    return torch.from_numpy(np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array))


def arrays(j: Any, episodes: Episode) -> tuple[Any, Any, Any, Any]:
    """Return support x, support y, query x, query y as JAX arrays.

    Images [T, B, C, H, W] become [T, B, H, W, C], labels int32."""

    def move(value: Tensor) -> Any:
        array = value.cpu().numpy()
        if array.ndim == 5:
            array = np.ascontiguousarray(array.transpose(0, 1, 3, 4, 2))
        return j.np.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)

    sx, sy, qx, qy = (move(part) for part in (*episodes.support[:2], *episodes.query[:2]))
    return sx, sy, qx, qy


def waves(j: Any, work: Workload) -> Any:
    """Return a function of a key that samples T sine waves at random points, as `arrays`."""

    def draw(key: Any) -> Any:
        u = j.jax.random.uniform(key, (work.tasks, 2 + work.shots + work.queries, 1))
        amplitude, phase, x = 0.1 + 4.9 * u[:, :1], np.pi * u[:, 1:2], 10 * u[:, 2:] - 5
        y = amplitude * j.np.sin(x - phase)
        k = work.shots
        return x[:, :k], y[:, :k], x[:, k:], y[:, k:]

    return draw


def features(j: Any, work: Workload, params: Any, x: Any) -> Any:
    """Return the body's features: MLP on x [B, 1], Conv4 on x [B, H, W, C] -> [B, D].

    Conv4 is four times convolution, batch normalisation, ReLU, pooling or strides."""
    if work.model == "mlp":
        for index in range(2):
            x = j.np.maximum(
                x @ params[f"layers.{index}.weight"].T + params[f"layers.{index}.bias"], 0
            )
        return x
    stride = 2 if work.downsample == "stride" else 1
    for index in range(4):
        strides, padding, layout = (stride, stride), ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        weight, bias = params[f"convs.{index}.weight"], params[f"convs.{index}.bias"]
        x = j.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=layout) + bias
        if work.norm:
            mean = x.mean((0, 1, 2))
            var = j.np.square(x - mean).mean((0, 1, 2))
            gain, bias = params[f"norms.{index}.weight"], params[f"norms.{index}.bias"]
            x = (x - mean) * j.lax.rsqrt(var + EPS) * gain + bias
        x = j.np.maximum(x, 0)
        if stride == 1:
            x = _pool(j, x)
    if work.flatten:  # in torch's order, so that the head's weights are the same
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return x.mean((1, 2))


def _pool(j: Any, x: Any) -> Any:
    """Return 2 x 2 maxima as maxima of strided views, which is faster on a CPU than reduce_window,
    whose gradient scatters."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = j.np.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return j.np.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def apply(j: Any, work: Workload, params: Any, x: Any) -> Any:
    """[B, *X] -> [B, C]."""
    return features(j, work, params, x) @ params["head.weight"].T + params["head.bias"]


def criterion(j: Any, work: Workload, predictions: Any, y: Any) -> Any:
    """Mean squared error or mean cross-entropy: []."""
    if work.regression:
        return j.np.square(predictions - y).mean()
    return -j.np.take_along_axis(j.nn.log_softmax(predictions), y[:, None], 1).mean()


def task_loss(j: Any, work: Workload) -> Any:
    """Return a function (params, sx, sy, qx, qy) of one task -> the query loss after learning."""

    def loss(params: Any, x: Any, y: Any) -> Any:
        return criterion(j, work, apply(j, work, params, x), y)

    def adapted(params: Any, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        for _ in range(work.inner_steps):
            grads = j.jax.grad(loss)(params, sx, sy)
            if work.first_order:
                grads = j.lax.stop_gradient(grads)
            params = j.jax.tree.map(lambda p, g: p - work.inner_lr * g, params, grads)
        return loss(params, qx, qy)

    def head_loss(head: Any, z: Any, y: Any) -> Any:
        return criterion(j, work, z @ head["head.weight"].T + head["head.bias"], y)

    def adapted_head(params: Any, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        z, q = features(j, work, params, sx), features(j, work, params, qx)
        head = {name: params[name] for name in ("head.weight", "head.bias")}
        for _ in range(work.inner_steps):
            grads = j.jax.grad(head_loss)(head, z, sy)
            head = j.jax.tree.map(lambda p, g: p - work.inner_lr * g, head, grads)
        return head_loss(head, q, qy)

    def compared(params: Any, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        z, q = features(j, work, params, sx), features(j, work, params, qx)
        member = (sy[:, None] == j.np.arange(work.ways)).astype(z.dtype)
        centres = member.T @ z / member.sum(0)[:, None]
        predictions = -j.np.square(q[:, None] - centres).sum(-1)
        return criterion(j, work, predictions, qy)

    return {"proto_net": compared, "anil": adapted_head}.get(work.family, adapted)
