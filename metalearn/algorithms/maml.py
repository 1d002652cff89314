"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017, arXiv:1703.03400, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.component import Engine, MethodComponent, option
from metalearn.inner.adapt import adapt
from metalearn.inner.method import Points, episodic
from metalearn.inner.objective import support_loss
from metalearn.inner.requirements import require_queries
from metalearn.inner.rules import Adam, Rule, any_rate, sgd
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params, UpdateRule


class MAML(MethodComponent):
    """Learn an initialization from which a few gradient steps solve a new task.

    phi_0 = theta;  phi_{s+1} = phi_s - inner_lr * grad L_support(phi_s);
    minimise over theta the mean over tasks of L_query(phi_S)
    """

    place: ClassVar[int] = 0
    rate_is_input: ClassVar[bool] = True
    engine_trains: ClassVar[Engine] = "all"
    name: Literal["maml"] = option("maml", "The method.")
    inner_steps: int = option(1, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.01, "Inner step size, in training and on new tasks.", gt=0)
    first_order: bool = option(False, "FOMAML (section 5.2).", acts="train")
    outer: Rule = option(Adam(lr=1e-3), "Rule of the meta-update.", acts="train")

    def inner_rule(self, spec: EpisodeSpec) -> UpdateRule:
        """The rule of the inner loop, in training and on new tasks; a variant overrides it."""
        return sgd(any_rate(self.inner_lr, spec))

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_queries(self.name, spec)
        rule, loss, outer = self.inner_rule(spec), support_loss(learner, spec), self.outer
        first_order, steps = self.first_order, self.inner_steps

        def fit(meta: Meta, support: Batch, at: Points, key: Key) -> list[Params]:
            path = adapt(loss, meta, rule, support, at[-1], keep=at, first_order=first_order)
            return path.points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        return episodic(learner, spec, outer.build(meta_steps), fit, predict, inner_steps=steps)
