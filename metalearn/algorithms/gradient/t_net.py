"""T-nets (Lee & Choi 2018, arXiv:1801.05558, section 3.1)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn.component import option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.options import InnerLoop
from metalearn.inner.rules import Adam, Rule
from metalearn.tree import trainable
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # with weights [out, ...]
T = "<T>."  # before the leaf that a transformation belongs to; no layer has such a name


class TNet(InnerLoop):
    """MAML with a learned linear map after each layer; the inner loop leaves these maps fixed.

    A linear layer or convolution l computes T_l (W_l x) + b_l (equation 1);  the inner loop updates
    W and b, whose steps T rescales in learned directions (section 4.2);  meta = {"params",
    "transforms"}, T [out, out], initially the identity, so that training starts as MAML.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.TNet(inner_lr=0.01).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: no transformation of the input, and the bias is added behind T.
    name: Literal["t_net"] = option("t_net", "The method.")
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        rule, loss_of = self.inner_rule(spec), support_loss(learner, spec)

        def loss(at: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(transformed(at), batch, step)

        def init(key: Key) -> Meta:
            params = learner.init(key)
            layers = weights_of_layers(learner, params).items()
            eyes = {n: torch.eye(len(x), dtype=x.dtype, device=x.device) for n, x in layers}
            return {"params": params, "transforms": eyes}

        def fit(meta: Meta, support: Batch, at: StepIndices, key: Key) -> list[Params]:
            fixed = {f"{T}{name}": x for name, x in meta["transforms"].items()}
            options: Any = {"keep": at, "fixed": fixed}
            points = adapt(loss, meta["params"], rule, support, at[-1], **options).points
            return [transformed({**point, **fixed}) for point in points]

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        options: Any = {"inner_steps": self.inner_steps, "init": init}
        return episodic(learner, spec, self.outer.build(meta_steps), fit, predict, **options)


def weights_of_layers(learner: Learner, params: Params) -> Params:
    """Weights [out, ...] of linear layers and convolutions, without embeddings and the like.

    Networks that came from no torch module have no other leaves of two or more dimensions."""
    matrices = {name: x for name, x in trainable(params)[0].items() if x.dim() > 1}
    if learner.module is None:
        return matrices
    leaf_of, others = dict(learner.aliases), set[str]()
    for place, layer in learner.module(params).named_modules():
        if not isinstance(layer, LAYERS):
            names = (name for name, _ in layer.named_parameters(prefix=place, recurse=False))
            others |= {leaf_of.get(name, name) for name in names}
    return {name: x for name, x in matrices.items() if name not in others}


def transformed(at: Params) -> Params:
    """The network's parameters: T W in the place of each W [out, ...] that has a T [out, out]."""
    params = {name: x for name, x in at.items() if not name.startswith(T)}
    return {
        name: torch.einsum("oi,i...->o...", at[T + name], x) if T + name in at else x
        for name, x in params.items()
    }
