"""ALFA, adaptive learning of fast adaptation (Baik et al. 2020, arXiv:2011.00209, equation 5)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.heads import fresh_linear
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.rules import Adam, Rule
from metalearn.rng import fold_in
from metalearn.tree import trainable
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule

SMALL = 0.01  # of the last layer of g at the start


class ALFA(MethodComponent):
    """Learn an initialization and a network that predicts step sizes and decay in the inner loop.

    phi_{s+1} = b_s * phi_s - a_s * grad L_support(phi_s) (equation 5),
    (a_s, b_s) = (inner_lr, 1) * (1 + g(mean of phi_s, mean of grad)) for each parameter tensor,
    g an MLP with one hidden layer (equation 6). meta = {"params": phi_0, "rule": g};
    minimise over it the mean of L_query(phi_S).

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.ALFA(inner_steps=3).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: g is small at the start, so that the first steps are nearly MAML's; the authors
    # multiply its outputs by learned factors of each step, in the place of 1 + g.
    name: Literal["alfa"] = option("alfa", "The method.")
    inner_steps: int = option(5, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.01, "Learning rate where the output of g is 0.", acts="train", gt=0)
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        loss = support_loss(learner, spec)

        def init(key: Key) -> Meta:
            params = learner.init(key)
            weights = trainable(params)[0]
            like, width = next(iter(weights.values())), 2 * len(weights)
            net: Params = {}
            for layer, scale in (("hidden", 1.0), ("last", SMALL)):
                linear = fresh_linear(fold_in(key, layer), width, like.new_zeros(1, width))
                net |= {f"{layer}.{n[5:]}": scale * x.to(like.device) for n, x in linear.items()}
            return {"params": params, "rule": net}

        def fit(meta: Meta, support: Batch, at: StepIndices, key: Key) -> list[Params]:
            rule = generated(meta["rule"], self.inner_lr)
            return adapt(loss, meta["params"], rule, support, at[-1], keep=at).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        options: Any = {"inner_steps": self.inner_steps, "init": init}
        return episodic(learner, spec, self.outer.build(meta_steps), fit, predict, **options)


def generated(net: Params, lr: float) -> UpdateRule:
    """Descent with rates and decays of a network [2L] -> [2L], L leaves; the network is state."""

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        names = list(grads)
        means = [tree[name].mean() for tree in (params, grads) for name in names]
        hidden = torch.relu(state["hidden.weight"] @ torch.stack(means) + state["hidden.bias"])
        factors = 1 + state["last.weight"] @ hidden + state["last.bias"]
        rates, decays = factors[: len(names)], factors[len(names) :]
        updates = {
            name: (decays[n] - 1) * params[name] - lr * rates[n] * grads[name]
            for n, name in enumerate(names)
        }
        return updates, state

    return UpdateRule(lambda params: net, update)
