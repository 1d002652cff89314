"""Almost no inner loop (Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157, section 4)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from metalearn.component import Engine, option
from metalearn.inner.adapt import adapt, linear_loss
from metalearn.inner.heads import is_head, linear
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.options import InnerLoop
from metalearn.inner.requirements import require_head
from metalearn.inner.rules import Adam, Rule
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class ANIL(InnerLoop):
    """MAML whose inner loop updates only the head; features are computed once.

    (b, h) = theta;  h_{s+1} = h_s - inner_lr * grad_h L_support(b, h_s);  minimise over b and h_0
    the mean of L_query(b, h_S). The gradient for b goes through the features of both sets.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> ml.algorithms.ANIL(inner_lr=0.1).build(learner, source.spec).traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 5
    engine_trains: ClassVar[Engine] = "head"
    name: Literal["anil"] = option("anil", "The method.")
    inner_steps: int = option(5, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.1, "Inner step size, in training and on new tasks.", gt=0)
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_head(self.name, learner)
        rule, loss = self.inner_rule(spec), linear_loss(spec)

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            head, body = partition(meta, is_head)
            z = support._replace(x=learner.features(body, support.x))  # once for all steps
            return adapt(loss, head, rule, z, steps[-1], keep=steps).points

        def features(meta: Meta, support: Batch, query_x: Tensor) -> Tensor:
            return learner.features(partition(meta, is_head)[1], query_x, context=support.x)

        def predict(meta: Meta, head: Any, support: Batch, z: Tensor) -> Tensor:
            return linear(head, z)

        options: Any = {"inner_steps": self.inner_steps, "features": features}
        return episodic(learner, spec, self.outer.build(meta_steps), adapt_task, predict, **options)
