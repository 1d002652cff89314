"""A new task learned by a trained method: labelled examples in, answers and weights out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.method import params_of
from metalearn.rng import fold_in
from metalearn.tree import tree_map
from metalearn.types import Batch, EpisodeSpec, Learner, Meta, Method, Params


class AdaptedModule(nn.Module):
    """The adapted network as an ordinary module: its `state_dict` has the learner's names.

    Where normalisation uses the support set, that set is a buffer of the module.
    """

    def __init__(self, learner: Learner, params: Params, support_x: Tensor) -> None:
        super().__init__()
        self._learner, self._names = learner, list(params)
        for name, value in params.items():
            parent: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            if name.startswith("stats."):
                parent.register_buffer(leaf, value.detach().clone())
            else:
                parent.register_parameter(leaf, nn.Parameter(value.detach().clone()))
        self.register_buffer("support_x", support_x.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [B, C] of inputs [B, *X]."""
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        params = {name: named[name] for name in self._names}
        return self._learner.apply(params, x, context=self.support_x)


@dataclass(frozen=True)
class AdaptedTask:
    """What a method has learned of one task."""

    method: Method
    learner: Learner
    meta: Meta
    support: Batch
    steps: int
    item: Any  # of `Method.adapt`
    classes: Any  # [N] labels as they were given; None in regression

    def outputs(self, x: Any) -> Tensor:
        """Logits or values [M, C] of inputs [M, *X], numpy or torch."""
        query_x = inputs(x, self.method.spec)
        if self.method.adapt is None or self.method.predict is None:
            batch = tree_map(lambda leaf: leaf.unsqueeze(0), self.support)
            learned = self.method.learn(self.meta, batch, query_x.unsqueeze(0), (self.steps,))
            return learned.predictions[0, 0].detach()
        return self.method.predict(self.meta, self.item, self.support, query_x).detach()

    def predict(self, x: Any) -> Any:
        """Labels [M] of the given kind, or values [M, C]; numpy in, numpy out.

        Where the method normalises by the query batch, the answers depend on the inputs that are
        predicted together.
        """
        found = self.outputs(x)
        if self.classes is None:
            return _like(found, x)
        place = found.argmax(-1).cpu()
        return self.classes[place if isinstance(self.classes, Tensor) else place.numpy()]

    def predict_proba(self, x: Any) -> Any:
        """Probability of each class of `classes`: [M, N]."""
        if self.classes is None:
            raise ConfigError(("predict_proba", "is for classes, and this task is regression"))
        return _like(self.outputs(x).softmax(-1), x)

    def module(self) -> AdaptedModule:
        """An ordinary `torch.nn.Module` with the adapted weights; ConfigError without any."""
        whole = {**params_of(self.meta), **self.item} if isinstance(self.item, dict) else {}
        if not whole or set(self.learner.init(fold_in(0))) - set(whole):
            text = "this method adapts no weights of the network: use predict"
            raise ConfigError(("module", text))
        return AdaptedModule(self.learner, whole, self.support.x)


def adapt_task(
    build: Callable[[EpisodeSpec], tuple[Learner, Method]],
    meta: Meta,
    spec: EpisodeSpec,
    x: Any,
    y: Any,
    steps: int,
    seed: int = 0,
) -> AdaptedTask:
    """Learn one task of labelled examples: x [B, *X], y [B] labels of any kind | [B, C] values.

    `build` makes learner and method for the task's spec; `spec` is that of the run's test tasks.
    Raises ConfigError for inputs of another shape, for labels that do not fit, and where the
    method's head was learned for another number of classes.
    """
    if steps < 0:
        raise ConfigError(("steps", f"must be >= 0 (got {steps})"))
    support_x = inputs(x, spec)
    classes, support_y = _targets(y, spec, len(support_x))
    ways = 1 if classes is None else len(classes)
    if classes is not None:
        shots = int(support_y.bincount().max())
        learner, method = build(replace(spec, ways=ways, outputs=ways, shots=shots))
    else:
        learner, method = build(replace(spec, shots=len(support_x)))
    if method.traits.fixed_ways and classes is not None and ways != spec.outputs:
        text = f"{ways} classes, and the method's head was learned for {spec.outputs}"
        raise ConfigError(("y", f"{text}: give {spec.outputs} classes"))
    support, key = Batch(support_x, support_y), fold_in(seed, "new task")
    item = None if method.adapt is None else method.adapt(meta, support, steps, key)
    return AdaptedTask(method, learner, meta, support, steps, item, classes)


def inputs(x: Any, spec: EpisodeSpec) -> Tensor:
    """Inputs [B, *X] as a tensor of the spec's dtype and device; ConfigError where they differ."""
    values = torch.as_tensor(x)
    if tuple(values.shape[1:]) != tuple(spec.x_shape) or not len(values):
        text = f"must have shape [B, {', '.join(map(str, spec.x_shape))}], B >= 1"
        raise ConfigError(("x", f"{text} (got {list(values.shape)})"))
    if values.dtype == torch.uint8 and len(spec.x_shape) == 3:
        raise ConfigError(("x", "images must be floats in 0..1, ink bright; got bytes"))
    values = values.to(spec.device, spec.dtype)
    if not values.isfinite().all():
        raise ConfigError(("x", "must be finite"))
    return values


def _targets(y: Any, spec: EpisodeSpec, count: int) -> tuple[Any, Tensor]:
    """(classes or None, targets): labels become 0 .. N-1 in sorted order."""
    if len(y) != count:
        raise ConfigError(("y", f"has {len(y)} entries for {count} inputs"))
    if not spec.classification:
        values = torch.as_tensor(np.asarray(y) if isinstance(y, list) else y)
        values = values.to(spec.device, spec.dtype)
        values = values.unsqueeze(-1) if values.dim() == 1 else values
        if tuple(values.shape[1:]) != (spec.outputs,) or not values.isfinite().all():
            text = f"must be finite, [B, {spec.outputs}] (got {list(values.shape)})"
            raise ConfigError(("y", text))
        return None, values
    if isinstance(y, Tensor):
        classes: Any
        classes, place = torch.unique(y.cpu(), return_inverse=True)
    else:
        classes, found = np.unique(np.asarray(y), return_inverse=True)
        place = torch.as_tensor(found)
    if place.dim() != 1 or len(classes) < 2:
        raise ConfigError(("y", f"must be [B] labels of at least 2 classes (got {len(classes)})"))
    return classes, place.to(spec.device)


def _like(values: Tensor, given: Any) -> Any:
    """Torch for torch, numpy for everything else."""
    return values if isinstance(given, Tensor) else values.cpu().numpy()
