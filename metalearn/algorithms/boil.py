"""Body only update in the inner loop (Oh, Yoo, Kim & Yun 2021, arXiv:2008.08882, section 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

from metalearn.algorithms.anil import ANIL
from metalearn.component import Engine, option
from metalearn.inner.adapt import adapt, predict_adapted, support_loss
from metalearn.inner.heads import is_head
from metalearn.inner.method import StepIndices, episodic
from metalearn.inner.requirements import require_head
from metalearn.tree import partition
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta, Method, Params


class BOIL(ANIL):
    """MAML whose inner loop updates everything except the head.

    b_{s+1} = b_s - inner_lr * grad_b L_support(b_s, h);  minimise over b_0, h: mean L_query(b_S, h)

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> ml.algorithms.BOIL(inner_lr=0.1).build(learner, source.spec).traits.phases
    ('adapt', 'predict')
    """

    palette_index: ClassVar[int] = 6
    engine_trains: ClassVar[Engine] = "body"
    name: Literal["boil"] = option("boil", "The method.")  # type: ignore[assignment]
    inner_steps: int = option(1, "S, inner steps in training.", acts="train", ge=1, le=1000)

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_head(self.name, learner, linear=False)
        rule, loss = self.inner_rule(spec), support_loss(learner, spec)

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            head, body = partition(meta, is_head)
            return adapt(loss, body, rule, support, steps[-1], keep=steps, fixed=head).points

        predict, outer = predict_adapted(learner), self.outer.build(meta_steps)
        return episodic(learner, spec, outer, adapt_task, predict, inner_steps=self.inner_steps)
