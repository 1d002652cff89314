"""P>M>F: pretrain, meta-train, fine-tune (Hu et al. 2022, arXiv:2204.07305, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.augment import Change, augment, require_square
from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt, weighted_loss
from metalearn.inner.heads import class_means, is_head, negative_squared_distance
from metalearn.inner.method import StepIndices, episodic, make_learn_functions
from metalearn.inner.requirements import require_classes
from metalearn.inner.rules import Adam, Rule, rate_as_input, sgd
from metalearn.losses import criterion
from metalearn.padding import padding_scope
from metalearn.rng import fold_in
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params

# A number, made at import: a step that hashes a name cannot be compiled.
CHANGED = int(fold_in(0, "changed support"))


class PMF(MethodComponent):
    """Meta-train a ProtoNet, ideally from pretrained weights, and fine-tune it on each new task.

    logits = -|f(x) - c_n|^2, c_n the mean feature of class n;  on a new task f takes gradient
    steps on the loss of augmented support images, with the class means of the original ones
    (section 3.3), which are recomputed with f. Training and the prediction at step 0 are those of
    ProtoNet. meta = {"params"}, the network without its head, as in a pretrained run.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.PMF(augment=()).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure: one set of changed copies for all steps, where the authors draw it in each.
    family: ClassVar[str] = "metric"
    rate_is_input: ClassVar[bool] = True
    name: Literal["pmf"] = option("pmf", "The method.")
    inner_lr: float = option(0.01, "Step size on a new task.", acts="adapt", gt=0)
    augment: tuple[Change, ...] = option(
        ("crop", "flip", "colour"),
        "Augmentations of the support images; not used for other inputs.",
        acts="adapt",
    )
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)
        rule, loss_of = sgd(rate_as_input(self.inner_lr, spec)), criterion(spec)
        changes = self.augment if len(spec.x_shape) == 3 else ()
        require_square(changes, spec.x_shape)

        def centres_of(params: Params, support: Batch) -> Tensor:
            with padding_scope(support.weight):
                z = learner.features(params, support.x)
            return class_means(z, support.y, spec.ways, support.weight)

        def loss(params: Params, both: Batch, step: int) -> Tensor:
            """Of the second half of the batch against the means of the first."""
            support, queries = _halves(both)
            with padding_scope(queries.weight, context=support.weight):
                z = learner.features(params, queries.x, context=support.x)
                logits = negative_squared_distance(z, centres_of(params, support))
                return weighted_loss(loss_of, logits, queries)

        def fit(meta: Meta, support: Batch, at: StepIndices, key: Key) -> list[dict[str, Any]]:
            places = torch.arange(support.x.shape[0], device=support.x.device)
            changed = augment(support.x, fold_in(key, CHANGED, places), changes)
            x, y = torch.cat([support.x, changed]), torch.cat([support.y, support.y])
            weight = None if support.weight is None else support.weight.repeat(2)
            both = Batch(x, y, weight)
            points = adapt(loss, meta["params"], rule, both, at[-1], keep=at).points
            return [{"params": point, "centres": centres_of(point, support)} for point in points]

        def init(key: Key) -> Meta:
            return {"params": partition(learner.init(key), is_head)[1]}

        def predict(meta: Meta, adapted: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = learner.features(adapted["params"], query_x, context=support.x)
            return negative_squared_distance(z, adapted["centres"])

        outer = self.outer.build(meta_steps)
        method = episodic(learner, spec, outer, fit, predict, inner_steps=0, init=init)
        traits = replace(method.traits, uses_steps=True, support_at_step_0=True)
        return method._replace(traits=traits, **make_learn_functions(fit, predict)._asdict())


def _halves(both: Batch) -> tuple[Batch, Batch]:
    size = both.x.shape[0] // 2
    weight = (None, None) if both.weight is None else both.weight.split(size)
    first, second = zip(both.x.split(size), both.y.split(size), weight, strict=True)
    return Batch(*first), Batch(*second)
