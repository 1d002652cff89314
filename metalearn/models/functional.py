"""Our own torch modules as Learners: pure functions of a flat dict of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn import padding, rng
from metalearn.errors import ConfigError
from metalearn.models.init import Scheme, start
from metalearn.models.norm import Norm, Policy
from metalearn.models.threads import functional_call
from metalearn.padding import statistics_of
from metalearn.scopes.running_statistics import training_scope
from metalearn.tree import STATS
from metalearn.types import EpisodeSpec, Key, Learner, Params

# (params, x, rows): rows of x whose statistics normalise all; None: all of them
Call = Callable[[Params, Tensor, int | None], Tensor]
Run = Callable[[Params, Tensor, Tensor | None], Tensor]  # (params, x, context)


def module_learner(
    make: Callable[[], nn.Module],
    spec: EpisodeSpec,
    *,
    policy: Policy = "none",
    init: Scheme = "uniform",
    head_std: float | None = None,
) -> Learner:
    """Return a Learner from a function that makes a module of this package.

    Its `forward(x, rows=None)` passes `rows` to its `Norm` layers, all of one `policy`; its last
    layer is `self.head`, a Linear. Parameters are named as in the module and initialized with the
    scheme `init`."""
    with torch.device("meta"):
        body = make().to(dtype=spec.dtype)
    norms, init_params = running_norms(body), _start(body, spec, init, head_std)
    gains = batch_gains(body)
    for name in norms:
        body.get_submodule(name).stated_name = name  # type: ignore[assignment]
    body.head = nn.Identity()
    run = by_policy(policy, lambda params, x, rows: _call(body, params, require_floats(x), rows))

    def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return run(params, x, context)

    def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return F.linear(run(params, x, context), params["head.weight"], params["head.bias"])

    def stats(params: Params, x: Tensor) -> Params:
        if not norms:
            return params
        with training_scope() as scope:
            run(params, x, None)
        return scope.updated(params)

    learner = Learner(init_params, features, apply, stats, policy, spec.outputs, spec.x_shape)
    return learner._replace(gains=gains)


def require_floats(x: Tensor) -> Tensor:
    """Return inputs of layers that multiply numbers; raises ConfigError if they are integers."""
    if x.is_floating_point():
        return x
    kind = str(x.dtype).removeprefix("torch.")
    text = f"are {kind}, and this network multiplies floats: give x.float() for numbers (pixels of"
    text += " 0..255 divided by 255), or a module with an embedding for numbers of words"
    raise ConfigError(("inputs", text))


def _start(
    module: nn.Module, spec: EpisodeSpec, init: Scheme, head_std: float | None
) -> Callable[[Key], Params]:
    """Return the initialization of parameters and running statistics as a function of a key."""
    owners, norms = dict(module.named_modules()), running_norms(module)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}

    def init_params(key: Key) -> Params:
        params = {}
        for name, shape in shapes.items():
            if name == "head.weight" and head_std is not None:
                value = head_std * rng.normal(rng.fold_in(key, name), shape, spec.dtype)
            else:
                owner = owners[name.rpartition(".")[0]]
                value = start(key, name, owner, shape, init, spec.dtype)
            params[name] = value.to(spec.device)
        for name in norms:
            zeros = torch.zeros(shapes[f"{name}.weight"], dtype=spec.dtype, device=spec.device)
            params |= {f"{STATS}{name}.mean": zeros, f"{STATS}{name}.var": torch.ones_like(zeros)}
        return params

    return init_params


def batch_gains(module: nn.Module) -> tuple[str, ...]:
    """Return the names of gain and shift of batch normalisation, that of torch included."""
    layers = (_BatchNorm, Norm)
    return tuple(
        f"{name}.{leaf}"
        for name, part in module.named_modules()
        if isinstance(part, layers)
        for leaf, value in part.named_parameters(recurse=False)
        if value.requires_grad
    )


def running_norms(module: nn.Module) -> list[str]:
    """Return the names of the `Norm` layers with running statistics."""
    modules = module.named_modules()
    return [name for name, part in modules if isinstance(part, Norm) and part.policy == "running"]


def _call(body: nn.Module, params: Params, *args: Any) -> Tensor:
    """Call the body with statistics under the buffers' names and without the head's leaves."""
    tensors = {
        name.removeprefix(STATS): value
        for name, value in params.items()
        if not name.startswith("head.")
    }
    out: Tensor = functional_call(body, tensors, args)
    return out


def by_policy(policy: str, call: Call) -> Run:
    """Return `call` for examples [B, *X] and a support set [K, *X] under a normalisation policy."""

    def alone(params: Params, x: Tensor, context: Tensor | None) -> Tensor:
        with statistics_of(padding.current().weight):
            return call(params, x, None)

    def with_support(params: Params, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return alone(params, x, None)
        rows = context.shape[0]
        with statistics_of(padding.current().context):
            return call(params, torch.cat([context, x]), rows)[rows:]

    def with_support_and_itself(params: Params, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return alone(params, x, None)
        weight = padding.current().context
        weight = None if weight is None else torch.cat([weight, weight.new_ones(1)])

        def one(query: Tensor) -> Tensor:
            return call(params, torch.cat([context, query.unsqueeze(0)]), None)[-1]

        with statistics_of(weight):
            return torch.func.vmap(one)(x)

    return {"support": with_support, "support_plus_one": with_support_and_itself}.get(policy, alone)
