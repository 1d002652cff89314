"""Methods that predict a normal distribution: its mean is scored, its likelihood is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.inner.method import (
    AdaptFn,
    PredictFn,
    episodic,
    make_step_over_tasks,
    make_task_grad,
)
from metalearn.losses import gaussian_nll, metrics
from metalearn.padding import zero_padding
from metalearn.types import (
    Episode,
    EpisodeSpec,
    Learned,
    Learner,
    Meta,
    Method,
    Metrics,
    UpdateRule,
)

FLOOR = 0.01  # the least deviation: without one, the likelihood of a point has no bound


def gaussian(
    learner: Learner,
    spec: EpisodeSpec,
    outer: UpdateRule,
    adapt: AdaptFn,
    predict: PredictFn,
    **options: Any,
) -> Method:
    """A method of two functions of one task, as `episodic` makes it, for a predictive distribution.

    minimise over meta the mean over tasks of -log N(y | mean, deviation^2); `predict` gives both
    side by side, [M, 2C], the deviation s = 0.01 + softplus(raw). The predictions are the means;
    `options` are those of `episodic`.
    """
    method = episodic(learner, spec, outer, adapt, predict, **options)
    adapt_task, outputs_of, learn_means = method.adapt, method.predict, method.learn
    assert adapt_task is not None and outputs_of is not None and method.update is not None

    def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query = zero_padding(episode.support), zero_padding(episode.query)
        adapted = adapt_task(meta, support, options["inner_steps"], episode.info["key"])
        mean, log_deviation = split(outputs_of(meta, adapted, support, query.x, query.weight))
        loss = gaussian_nll(mean, log_deviation, *query[1:])
        return loss, {**metrics(spec, mean, *query[1:]), "query_nll": loss.detach()}

    def learn(*args: Any, **kwargs: Any) -> Learned:
        predictions = learn_means(*args, **kwargs)
        mean, log_deviation = split(predictions.predictions)
        return predictions._replace(predictions=mean, log_deviation=log_deviation)

    def mean_of(*args: Any, **kwargs: Any) -> Tensor:
        return split(outputs_of(*args, **kwargs))[0]

    task_grad = make_task_grad(task_loss, learner)
    step = make_step_over_tasks(task_grad, method.update, spec)
    return method._replace(learn=learn, predict=mean_of, task_grad=task_grad, step=step)


def split(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, log of the deviation) of raw outputs: [..., 2C] -> 2 x [..., C]."""
    mean, raw = outputs.chunk(2, -1)
    return mean, torch.log(FLOOR + F.softplus(raw))
