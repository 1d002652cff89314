"""How a new task is learned by steps, apart from the rule that makes them."""

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
    """What the steps of one task move, from where, and what they learn from."""

    params: Params  # at step 0
    fixed: Params
    batch: Batch  # the support set, changed copies of it, or their features


class Adaptation(NamedTuple):
    """The loss that steps descend, their start, and predictions after them."""

    loss: Loss
    start: Callable[[Meta, Batch, Key], Problem]
    predict: PredictFn
    features: FeaturesFn | None = None

    def points(self, problem: Problem, rule: UpdateRule, points: StepIndices) -> list[Params]:
        """The parameters that steps of `rule` move, at each of `points`."""
        path = adapt(
            self.loss,
            problem.params,
            rule,
            problem.batch,
            points[-1],
            keep=points,
            fixed=problem.fixed,
        )
        return path.points

    def by_rule(self, rule: UpdateRule) -> LearnFunctions:
        """Learning of a task by `rule`."""

        def adapt_task(meta: Meta, support: Batch, points: StepIndices, key: Key) -> list[Params]:
            problem = self.start(meta, support, key)
            return [{**problem.fixed, **point} for point in self.points(problem, rule, points)]

        return make_learn_functions(adapt_task, self.predict, features=self.features)
