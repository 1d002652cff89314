"""How a new task is learned in steps, independent of the update rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from metalearn.inner.adapt import Loss, adapt
from metalearn.inner.method import (
    FeaturesFn,
    LearnFunctions,
    PredictFn,
    StepIndices,
    make_learn_functions,
)
from metalearn.types import Batch, Key, Meta, Params, UpdateRule


class Problem(NamedTuple):
    """The adapted parameters of one task, its fixed parameters and its training examples."""

    params: Params  # at step 0
    fixed: Params
    batch: Batch  # the support set, augmented copies of it, or their features


class Adaptation(NamedTuple):
    """The inner loss, the initial problem of a task, and the predictions after the steps."""

    loss: Loss
    start: Callable[[Meta, Batch, Key], Problem]
    predict: PredictFn
    features: FeaturesFn | None = None

    def params_at(
        self, problem: Problem, rule: UpdateRule, step_indices: StepIndices
    ) -> list[Params]:
        """Return the adapted parameters at each of `step_indices`, by steps of `rule`."""
        path = adapt(
            self.loss,
            problem.params,
            rule,
            problem.batch,
            step_indices[-1],
            keep=step_indices,
            fixed=problem.fixed,
        )
        return path.points

    def by_rule(self, rule: UpdateRule) -> LearnFunctions:
        """Return the learn functions of a task with `rule`."""

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            problem = self.start(meta, support, key)
            return [{**problem.fixed, **params} for params in self.params_at(problem, rule, steps)]

        return make_learn_functions(adapt_task, self.predict, features=self.features)
