"""From an ordinary torch module to a Learner: pure functions of a flat dict of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.models.init import Scheme, start
from metalearn.models.norm import Moments, Policy
from metalearn.models.threads import functional_call
from metalearn.tree import STATS
from metalearn.types import EpisodeSpec, Key, Learner, Params

Start = Callable[[Key, str, tuple[int, ...], torch.dtype], Tensor]
MOMENTUM = 0.1  # share of a new batch in the running statistics, as torch's batch norm

REFUSED: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "keeps hidden running statistics: use "
    "metalearn.models.Norm, or GroupNorm",
    nn.modules.instancenorm._InstanceNorm: "keeps hidden running statistics: use GroupNorm",
    nn.modules.dropout._DropoutNd: "draws hidden random numbers, which differ between a loop "
    "and a batch: leave it out",
    nn.RNNBase: "has fused kernels that cannot be batched over tasks: write the recurrence "
    "with Linear layers",
    nn.MultiheadAttention: "has a fused kernel without a second derivative: write softmax "
    "attention with Linear layers",
    nn.TransformerEncoderLayer: "has fused kernels without a second derivative: use Linear and "
    "LayerNorm layers",
}


def from_module(
    make: Callable[[], nn.Module] | nn.Module,
    spec: EpisodeSpec,
    *,
    policy: Policy = "none",
    init: Scheme | Start = "uniform",
    head_std: float | None = None,
) -> Learner:
    """A Learner from a torch module, or a function that makes one, whose last layer is a Linear
    called `head`.

    Parameters are named as in the module. `init` is a scheme for torch's own layers or a function
    (key, name, shape, dtype) -> tensor. Raises ConfigError for a module that cannot be batched over
    tasks."""
    with torch.random.fork_rng(
        devices=[]
    ):  # torch's own start is thrown away and must move no generator
        made = make() if not isinstance(make, nn.Module) else copy.deepcopy(make)
    module = made.to(device="meta", dtype=spec.dtype)
    _refuse(module, spec)
    body = copy.deepcopy(module)
    body.head = nn.Identity()
    owners = dict(module.named_modules())
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    norms = [
        name
        for name, layer in owners.items()
        if hasattr(layer, "policy") and layer.policy == "running"
    ]
    run = _runner(body, policy, norms)

    def init_params(key: Key) -> Params:
        params = {}
        for name, shape in shapes.items():
            if callable(init):
                params[name] = init(rng.fold_in(key, name), name, shape, spec.dtype)
            elif name == "head.weight" and head_std is not None:
                params[name] = head_std * rng.normal(rng.fold_in(key, name), shape, spec.dtype)
            else:
                params[name] = start(
                    key, name, owners[name.rpartition(".")[0]], shape, init, spec.dtype
                )
            params[name] = params[name].to(spec.device)
        for name in norms:
            width = shapes[f"{name}.weight"]
            params[f"{STATS}{name}.mean"] = torch.zeros(width, dtype=spec.dtype, device=spec.device)
            params[f"{STATS}{name}.var"] = torch.ones(width, dtype=spec.dtype, device=spec.device)
        return params

    def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return run(params, x, context)

    def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return F.linear(run(params, x, context), params["head.weight"], params["head.bias"])

    def stats(params: Params, x: Tensor) -> Params:
        return _refreshed(body, params, x, norms)

    return Learner(init_params, features, apply, stats, policy, spec.outputs, spec.x_shape)


def _call(body: nn.Module, params: Params, *args: Any) -> Tensor:
    """The body as a function: statistics go under the buffers' names, the head's leaves stay
    outside.
    """
    named = {
        name.removeprefix(STATS): value
        for name, value in params.items()
        if not name.startswith("head.")
    }
    out: Tensor = functional_call(body, named, args)
    return out


def _runner(
    body: nn.Module, policy: Policy, norms: list[str]
) -> Callable[[Params, Tensor, Tensor | None], Tensor]:
    def alone(params: Params, x: Tensor, context: Tensor | None) -> Tensor:
        return _call(body, params, x)

    def with_support(params: Params, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return _call(body, params, x)
        rows = context.shape[0]
        return _call(body, params, torch.cat([context, x]), rows)[rows:]

    def with_support_and_itself(params: Params, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return _call(body, params, x)

        def one(query: Tensor) -> Tensor:
            return _call(body, params, torch.cat([context, query.unsqueeze(0)]))[-1]

        return torch.func.vmap(one)(x)

    return {"support": with_support, "support_plus_one": with_support_and_itself}.get(policy, alone)


def _refreshed(body: nn.Module, params: Params, x: Tensor, norms: list[str]) -> Params:
    if not norms:
        return params
    seen: Moments = []
    _call(body, params, x, None, seen)
    new = dict(params)
    for name, moments in zip(norms, seen, strict=True):
        # The biased variance, which is also what normalises a batch; torch's batch norm stores the
        # unbiased one.
        for leaf, value in zip(("mean", "var"), moments, strict=True):
            old = params[f"{STATS}{name}.{leaf}"]
            new[f"{STATS}{name}.{leaf}"] = (1 - MOMENTUM) * old + MOMENTUM * value.detach()
    return new


def _refuse(module: nn.Module, spec: EpisodeSpec) -> None:
    problems = []
    for name, layer in module.named_modules():
        for kind, why in REFUSED.items():
            if isinstance(layer, kind):
                problems.append((name or type(module).__name__, f"{type(layer).__name__} {why}"))
    head = getattr(module, "head", None)
    if not isinstance(head, nn.Linear) or head.bias is None:
        problems.append(
            (
                type(module).__name__,
                "needs a last layer `self.head = torch.nn.Linear(features, outputs)`: "
                "head.weight and head.bias are what ANIL, fine-tuning and probes look for",
            )
        )
    elif head.out_features != spec.outputs:
        problems.append(("head", f"has {head.out_features} outputs, the task needs {spec.outputs}"))
    if problems:
        raise ConfigError(*problems)
