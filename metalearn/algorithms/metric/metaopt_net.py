"""MetaOptNet with the ridge head (Lee et al. 2019, arXiv:1904.03758, section 3.2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.heads import is_head
from metalearn.inner.method import StepNumbers, episodic, meta_gradient, step_over_tasks
from metalearn.inner.requirements import require_classes, require_queries
from metalearn.inner.rules import Momentum, Rule
from metalearn.losses import metrics, one_hot
from metalearn.padding import cleaned
from metalearn.tree import partition
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method, Metrics


class MetaOptNet(MethodComponent):
    """Learn features on which a ridge classifier of fixed strength answers a new task.

    W = Z' (Z Z' + strength I)^-1 Y,  logits = scale * z W, Y one-hot (appendix A, ridge);  minimise
    the cross-entropy with smoothed labels, 1 - smoothing at the true class, over features and
    scale = exp(log_scale). No steps: one constant point at every step of a curve.
    """

    # R2-D2 learns the strength too; here it is a field, as in the authors' code (50).
    family: ClassVar[str] = "metric"
    name: Literal["metaopt_net"] = option("metaopt_net", "The method.")
    strength: float = option(50.0, "Weight of the squared norm of W.", gt=0)
    scale: float = option(7.0, "Start of the scale.", acts="train", gt=0)
    smoothing: float = option(
        0.1, "Share of a label spread over the other classes.", acts="train", ge=0, lt=1
    )
    outer: Rule = option(
        Momentum(lr=0.1, schedule="cosine"), "Rule of the meta-update.", acts="train"
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)
        require_queries(self.name, spec)

        def init(key: Key) -> Meta:
            params = partition(learner.init(key), is_head)[1]
            like = next(iter(params.values()))
            return {"params": params, "log_scale": like.new_full((), self.scale).log()}

        def fit(meta: Meta, support: Batch, at: StepNumbers, key: Key) -> list[Tensor]:
            z = learner.features(meta["params"], support.x)
            y = one_hot(support.y, spec.ways, z.dtype)
            if support.weight is not None:  # rows of a weighted ridge regression; padding is 0
                root = support.weight.sqrt().unsqueeze(-1)
                z, y = root * z, root * y
            ridge = self.strength * torch.eye(z.shape[0], dtype=z.dtype, device=z.device)
            return [z.T @ torch.linalg.solve(z @ z.T + ridge, y)]  # [D, N]

        def predict(meta: Meta, weight: Any, support: Batch, query_x: Tensor) -> Tensor:
            z = learner.features(meta["params"], query_x, context=support.x)
            logits: Tensor = meta["log_scale"].exp() * z @ weight
            return logits

        options: Any = {"inner_steps": 0, "init": init}
        outer = self.outer.build(meta_steps)
        method = episodic(learner, spec, outer, fit, predict, **options)
        assert method.adapt is not None and method.predict is not None
        assert method.update is not None
        adapt, answer = method.adapt, method.predict

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, Metrics]:
            support, query = cleaned(episode.support), cleaned(episode.query)
            item = adapt(meta, support, 0, episode.info["key"])
            logits = answer(meta, item, support, query.x, query.weight)
            loss = smoothed_cross_entropy(logits, query.y, query.weight, self.smoothing)
            return loss, metrics(spec, logits, *query[1:])

        task_grad = meta_gradient(task_loss, learner)
        step = step_over_tasks(task_grad, method.update, spec)
        return method._replace(task_grad=task_grad, step=step)


def smoothed_cross_entropy(
    logits: Tensor, y: Tensor, weight: Tensor | None, smoothing: float
) -> Tensor:
    """Mean of -sum_n t_n log p_n: [M, N], [M] -> [].

    t is the label with `smoothing` spread evenly over the other classes of the task; classes that
    are not there get none."""
    there = (logits > torch.finfo(logits.dtype).min / 8).to(logits.dtype)
    member = one_hot(y, logits.shape[-1], logits.dtype)
    others = there * (1 - member)
    share = smoothing / others.sum(-1, keepdim=True).clamp(min=1)
    target = (1 - smoothing) * member + share * others
    logs = torch.log_softmax(logits, -1)
    each = -(target * torch.where(target > 0, logs, torch.zeros_like(logs))).sum(-1)
    return each.mean() if weight is None else (weight * each).sum() / weight.sum()
