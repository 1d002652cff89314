"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017, arXiv:1703.03400, algorithm 1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from metalearn.component import Engine, option
from metalearn.inner.adapt import adapt, predict_adapted, support_loss
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.options import InnerLoop, Patterns, adapted_filter, adapts_option
from metalearn.inner.rules import Adam, Rule
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class MAML(InnerLoop):
    """Learn an initialization from which a few gradient steps solve a new task.

    phi_0 = theta;  phi_{s+1} = phi_s - inner_lr * grad L_support(phi_s);
    minimise over theta the mean over tasks of L_query(phi_S)

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> ml.algorithms.MAML(inner_steps=1, inner_lr=0.01).build(learner, source.spec).traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 0
    engine_trains: ClassVar[Engine] = "all"
    name: Literal["maml"] = option("maml", "The method.")
    adapts: Patterns | None = adapts_option()
    first_order: bool = option(False, "First-order MAML (FOMAML, section 5.2).", acts="train")
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        rule, loss = self.inner_rule(spec), support_loss(learner, spec)
        is_adapted, outer = adapted_filter(self.adapts, learner), self.outer.build(meta_steps)

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            params, fixed = partition(meta, is_adapted)
            options: Any = {"keep": steps, "fixed": fixed, "first_order": self.first_order}
            return adapt(loss, params, rule, support, steps[-1], **options).points

        predict = predict_adapted(learner)
        return episodic(learner, spec, outer, adapt_task, predict, inner_steps=self.inner_steps)
