"""CAVIA, fast context adaptation (Zintgraf et al. 2019, arXiv:1810.03642, algorithm 1)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn import rng
from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError, did_you_mean
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.heads import is_head
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.rules import Adam, Rule, rate_as_input, sgd
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class CAVIA(MethodComponent):
    """Learn a network and a small context vector; only the context is adapted to a new task.

    phi_0 = 0;  phi_{s+1} = phi_s - inner_lr * grad_phi L_support(theta, phi_s) (equation 1);
    minimise over theta the mean of L_query(theta, phi_S) (equation 2). phi [k] is an input of the
    first layer in addition to x: its bias becomes b + W_phi phi, the same as concatenating phi to x
    (equation 4). meta = {"params": theta, "context": W_phi [H, k]}.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.CAVIA(context_size=5).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 15
    rate_is_input: ClassVar[bool] = True
    name: Literal["cavia"] = option("cavia", "The method.")
    inner_steps: int = option(
        1, "S, inner steps of the context in training.", acts="train", ge=1, le=1000
    )
    inner_lr: float = option(1.0, "Step size of the context, in training and on new tasks.", gt=0)
    context_size: int = option(5, "k, dimension of the context vector.", acts="train", ge=1)
    bias: str | None = option(
        None, "Parameter that the context shifts; null: the bias of the first layer.", acts="train"
    )
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        params = learner.init(rng.fold_in(0, "names"))
        place = bias_leaf(self.bias, params, learner.normalisation)
        size = math.prod(spec.x_shape) + self.context_size
        rule, loss_of = sgd(rate_as_input(self.inner_lr, spec)), support_loss(learner, spec)

        def loss(context: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(shifted(context), batch, step)

        def shifted(at: Params) -> Params:
            """theta with b + W_phi phi in the place of b."""
            theta = {name.removeprefix("params."): x for name, x in at.items() if "." in name}
            return {**theta, place: theta[place] + at["weight"] @ at["phi"]}

        def init(key: Key) -> Meta:
            start, bound = learner.init(key), 1 / math.sqrt(size)
            shape = (start[place].shape[0], self.context_size)
            weights = rng.uniform(
                rng.fold_in(key, "context"), shape, -bound, bound, dtype=spec.dtype
            )
            return {"params": start, "context": weights.to(start[place].device)}

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            phi = {"phi": meta["context"].new_zeros(self.context_size)}
            fixed = {f"params.{name}": x for name, x in meta["params"].items()}
            fixed["weight"] = meta["context"]
            path = adapt(loss, phi, rule, support, steps[-1], keep=steps, fixed=fixed)
            return [shifted({**fixed, **point}) for point in path.points]

        def predict(meta: Meta, theta: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(theta, query_x, context=support.x)

        options: Any = {"inner_steps": self.inner_steps, "init": init}
        return episodic(learner, spec, self.outer.build(meta_steps), adapt_task, predict, **options)


def bias_leaf(name: str | None, params: Params, normalisation: str) -> str:
    """The leaf [H] that the context shifts; refuses what has no effect or does not exist."""
    vectors = [leaf for leaf, x in params.items() if x.dim() == 1 and not leaf.startswith("stats.")]
    if name is not None:
        if name not in vectors:
            raise ConfigError(("method.bias", f"{name!r}: {did_you_mean(name, vectors)}"))
        return name
    biases = [leaf for leaf in vectors if leaf.endswith("bias") and not is_head(leaf)]
    if not biases:
        raise ConfigError(("method.bias", "the network has no bias before its head"))
    if normalisation != "none":
        # A batch mean that is subtracted later would remove the context.
        text = "the first bias may be removed by a normalisation after it: use one of "
        raise ConfigError(("method.bias", text + ", ".join(vectors)))
    return biases[0]
