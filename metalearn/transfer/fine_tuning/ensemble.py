"""An ensemble over step sizes instead of a choice (FewTrans, Luo et al. 2026)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from metalearn.component import option
from metalearn.inner.method import LearnFunctions, StepIndices, make_learn_functions
from metalearn.losses import mean_prediction
from metalearn.padding import class_mask_of, mask_absent_classes
from metalearn.transfer.fine_tuning.adaptation import Adaptation
from metalearn.transfer.fine_tuning.grid import FineTuneGrid
from metalearn.tree import vmap
from metalearn.types import Batch, EpisodeSpec, Key, Meta, Params


class Members(NamedTuple):
    """The parameters of the members of an ensemble."""

    fixed: Params
    moved: Params  # leaves [R, ...]


class FineTuneEnsemble(FineTuneGrid):
    """Fine-tune with each of several step sizes and average the predictions.

    p(y | x) = 1/R sum_r softmax(f(x; phi_r)),  phi_r after s steps of fine_tune by inner_lr times
    the r-th of `lr_factors`, all from the same initialization: the hyper-parameter ensemble
    of Luo et al. 2026 (arXiv:2603.00478), which needs no validation set. logits = log p; in
    regression the mean of the outputs. Steps of all members are included in the cost.

    >>> source = ml.tasks.Digits(ways=3, shots=1).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.FineTuneEnsemble(inner_lr=0.1).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures: the authors' code uses a vote of the members, and steps on minibatches. They
    # combine 3 step sizes of the body with 3 of the head, a factor of 5 apart: the same as ours
    # with `head_lr_factors`.
    name: Literal["fine_tune_ensemble"] = option(  # type: ignore[assignment]
        "fine_tune_ensemble", "The method."
    )

    def learning(self, adaptation: Adaptation, spec: EpisodeSpec) -> LearnFunctions:
        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Members]:
            problem = adaptation.start(meta, support, key)
            paths = self.paths(adaptation, problem, steps)
            return [Members(problem.fixed, adapted) for adapted in paths]

        def predict(meta: Meta, members: Any, support: Batch, query_x: Tensor) -> Tensor:
            class_mask = class_mask_of(support, spec.outputs)

            def predict_member(adapted: Params) -> Tensor:
                params = {**members.fixed, **adapted}
                logits = adaptation.predict(meta, params, support, query_x)
                return mask_absent_classes(logits, class_mask)

            return mean_prediction(vmap(predict_member)(members.moved), spec.classification)

        return make_learn_functions(
            adapt_task, predict, features=adaptation.features, paths=len(self.grid)
        )
