"""torch's normalisation layers with a stated policy, without a change of their buffers.

The policy is found in the layer: a batch norm in training mode, or without running statistics,
normalises with the current batch (`query_batch`); one in evaluation mode with its stored running
statistics (`frozen`). The policies of norm.py can be chosen instead."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from metalearn.errors import ConfigError
from metalearn.models.forward_pass import record_layer, statistics_rows
from metalearn.models.norm import Norm, Policy
from metalearn.padding import statistics_weight, weighted_moments
from metalearn.scopes.running_statistics import is_training, record_batch

LayerPolicy = Policy | Literal["frozen"]
# The policy that a module of several is reported with is the first of these that it has.
ORDER = ("query_batch", "support", "support_plus_one", "running", "frozen", "none")
OF_BATCH = ("query_batch", "support", "support_plus_one")
READ = ("running", "frozen")


class StatedBatchNorm(_BatchNorm):
    """`forward` of torch's batch norm; `stated_policy` says whose statistics it reads."""

    stated_policy: str
    stated_name: str  # in the module that it is part of

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, ...] -> same."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        record_layer(self.stated_name)
        rows, affine = statistics_rows(), (self.weight, self.bias)
        trains = self.stated_policy == "running" and is_training()
        if self.stated_policy in READ and not trains:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, *affine, False, 0.0, self.eps)
        if trains:
            assert self.momentum is not None
            mean, var = _moments(x.detach(), correction=1)
            record_batch(
                self.stated_name, {"running_mean": mean, "running_var": var}, self.momentum
            )
        if rows is None and statistics_weight() is None:
            return F.batch_norm(x, None, None, *affine, True, 0.0, self.eps)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, var = (value.view(shape) for value in _moments(x[:rows], correction=0))
        z = (x - mean) * torch.rsqrt(var + self.eps)
        return z if self.weight is None else z * self.weight.view(shape) + self.bias.view(shape)


class StatedInstanceNorm(_InstanceNorm):
    """`forward` of torch's instance norm by the example's own statistics, or `frozen` ones."""

    stated_policy: str

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, ...] or [channels, ...] -> same."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        alone = x.dim() == self._get_no_batch_dim()  # type: ignore[no-untyped-call]
        batched = x.unsqueeze(0) if alone else x
        frozen = self.stated_policy == "frozen"
        mean, var = (self.running_mean, self.running_var) if frozen else (None, None)
        z = F.instance_norm(batched, mean, var, self.weight, self.bias, not frozen, 0.0, self.eps)
        return z.squeeze(0) if alone else z


def _moments(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel: [B, channels, ...] -> [channels] twice."""
    if (weight := statistics_weight()) is not None:
        mean, var, count = weighted_moments(x, weight)
        return mean, var * count / (count - 1).clamp(min=1) if correction else var
    var, mean = torch.var_mean(x, (0, *range(2, x.dim())), correction=correction)
    return mean, var


def layer_policies(module: nn.Module, override: str | None) -> dict[str, str]:
    """Return the policy of each normalisation layer that has one, by its name.

    Raises ConfigError if a layer does not support the policy `override`."""
    policies: dict[str, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, Norm):
            policies[name] = layer.policy
        elif isinstance(layer, _BatchNorm):
            has_statistics = layer.running_mean is not None
            policies[name] = override or (
                "frozen" if has_statistics and not layer.training else "query_batch"
            )
        elif isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            policies[name] = "none" if layer.training else "frozen"
    problems = [
        (name or type(module).__name__, text)
        for name, policy in policies.items()
        for text in _problems(module.get_submodule(name), policy, override)
    ]
    if not problems and override and override not in (*policies.values(), "none"):
        problems = [
            ("policy", f"{override} needs a batch normalisation layer, but the module has none")
        ]
    batch_policies = {policy for policy in policies.values() if policy in OF_BATCH}
    if not problems and len(batch_policies) > 1:
        text = f"its layers have {', '.join(sorted(batch_policies))}: one of them must be all"
        problems = [("policy", text)]
    if problems:
        raise ConfigError(*problems)
    return policies


def _problems(layer: nn.Module, policy: str, override: str | None) -> list[str]:
    kind = type(layer).__name__
    if isinstance(layer, nn.SyncBatchNorm):
        return [f"{kind} needs a process group: use the BatchNorm of its dimension"]
    if isinstance(layer, Norm):
        return (
            [f"has policy {policy} instead of {override}"] if override not in (None, policy) else []
        )
    if isinstance(layer, _InstanceNorm):
        return []
    if policy not in ORDER or policy == "none":
        return [f"{kind} does not support the policy {policy!r}; valid: {', '.join(ORDER[:-1])}"]
    if policy in READ and layer.running_mean is None:
        return [f"{kind} has no running statistics, which {policy} needs: use query_batch"]
    if policy == "running" and layer.momentum is None:
        return [f"{kind} has momentum=None, which cannot be averaged over tasks: set momentum=0.1"]
    return []


def followed_policies(
    nets: tuple[nn.Module, ...], policies: dict[str, str], run: set[str], override: str | None
) -> dict[str, str]:
    """Return the policies of the layers in `run`, whose own forward is that of torch.

    A subclass of torch's batch norm may compute otherwise, with the running statistics for
    instance. Raises ConfigError if it was to have the policy `override`."""
    kept, problems = dict(policies), []
    for name, policy in policies.items():
        layers = [net.get_submodule(name) for net in nets]
        if name in run or not isinstance(layers[0], StatedBatchNorm):
            continue
        own = type(layers[0]).forward is not StatedBatchNorm.forward
        if own and override in (*OF_BATCH, "running"):
            text = f"{type(layers[0]).__name__} has a forward of its own, which the policy"
            problems.append((name, f"{text} {override} does not change: omit policy"))
        if policy in OF_BATCH:
            del kept[name]
            for layer in layers:
                layer.stated_policy = "none"  # type: ignore[assignment]
    if problems:
        raise ConfigError(*problems)
    return kept


def module_policy(policies: dict[str, str]) -> str:
    """Return the policy that is reported for the whole module."""
    return next((policy for policy in ORDER if policy in policies.values()), "none")
