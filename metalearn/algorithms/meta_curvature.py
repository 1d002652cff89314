"""Meta-Curvature (Park & Oliva 2019, arXiv:1902.03356, section 4)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.rules import Adam, Rule, rate_as_input
from metalearn.tree import trainable
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule


class MetaCurvature(MethodComponent):
    """Learn an initialization and matrices that transform every gradient of the inner loop.

    phi_{s+1} = phi_s - inner_lr * M(grad L_support(phi_s)),
    M(G) = G x_1 M_o x_2 M_i x_3 M_f (equation 8; a tensor G [O, I, F...] is multiplied along
    outputs, inputs and the rest), all M starting at the identity; a vector is scaled elementwise.
    minimise over meta = {"params": phi_0, "curvature"} the mean of L_query(phi_S).

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.MetaCurvature().build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 14
    name: Literal["meta_curvature"] = option("meta_curvature", "The method.")
    inner_steps: int = option(1, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.01, "Inner step size, in training and on new tasks.", gt=0)
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        loss, rate = support_loss(learner, spec), rate_as_input(self.inner_lr, spec)

        def init(key: Key) -> Meta:
            params = learner.init(key)
            weights = trainable(params)[0].items()
            return {"params": params, "curvature": {name: identities(x) for name, x in weights}}

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            rule = transformed(meta["curvature"], rate)
            return adapt(loss, meta["params"], rule, support, steps[-1], keep=steps).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        options: Any = {"inner_steps": self.inner_steps, "init": init}
        return episodic(learner, spec, self.outer.build(meta_steps), adapt_task, predict, **options)


def identities(x: Tensor) -> dict[str, Tensor]:
    """An identity matrix for each axis of x; ones [*x] for a vector or a scalar.

    Axes from the third on count as one."""
    if x.dim() < 2:
        return {"scale": torch.ones_like(x)}
    sizes = {"outputs": x.shape[0], "inputs": x.shape[1]}
    if x.dim() > 2:
        sizes["rest"] = math.prod(x.shape[2:])
    return {name: torch.eye(n, dtype=x.dtype, device=x.device) for name, n in sizes.items()}


def transform(curvature: dict[str, Tensor], grad: Tensor) -> Tensor:
    """M(G), shaped like G."""
    if "scale" in curvature:
        return curvature["scale"] * grad
    flat = grad.flatten(2) if grad.dim() > 2 else grad.unsqueeze(-1)  # [O, I, F]
    flat = (curvature["outputs"] @ flat.flatten(1)).reshape(flat.shape)
    flat = curvature["inputs"] @ flat
    if "rest" in curvature:
        flat = flat @ curvature["rest"].T
    return flat.reshape(grad.shape)


def transformed(curvature: dict[str, dict[str, Tensor]], rate: Any) -> UpdateRule:
    """Descent on transformed gradients; the matrices are state, as in `per_parameter`."""

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        step = {name: -rate * transform(state[name], grad) for name, grad in grads.items()}
        return step, state

    return UpdateRule(lambda params: curvature, update)
