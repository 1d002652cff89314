"""MAML++ (Antoniou, Edwards & Storkey 2019, arXiv:1810.09502, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import (
    StepIndices,
    episodic,
    make_step_over_tasks,
    make_task_grad,
)
from metalearn.inner.rules import Adam, Rule
from metalearn.losses import criterion, metrics
from metalearn.padding import class_mask_of, mask_absent_classes, padding_scope, zero_padding
from metalearn.tree import partition, trainable, tree_map
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Key,
    Learner,
    Meta,
    Method,
    Metrics,
    Params,
    UpdateRule,
)

LEAST = 0.03  # weight of a step that is not the last, times 1/S: authors' code


class Rates(NamedTuple):
    """The state of the inner rule: floats, so that a gradient finds them in every executor."""

    rates: Params  # leaf -> [S]
    step: Tensor  # [] number of steps made
    second: Tensor  # [] 1: with second derivatives, 0: without


class MAMLPlusPlus(MethodComponent):
    """MAML with a learned step size per parameter tensor and step, and a loss after every step.

    phi_{s+1} = phi_s - rates[leaf][s] * grad L_support(phi_s) (LSLR);  minimise over meta =
    {"params": phi_0, "rates"} the sum over s of v_s L_query(phi_s), v annealed from 1/S
    each to the last step alone (MSL, equation 4). Gain and shift of batch normalisation are
    learned per step and not adapted (BNWB). `first_order_steps` leaves out second derivatives
    at first (DA); cosine annealing (CA) is a schedule of `outer`. Steps beyond S use what step S
    uses.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.MAMLPlusPlus(inner_steps=3).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    name: Literal["maml_plus_plus"] = option("maml_plus_plus", "The method.")
    inner_steps: int = option(5, "S, inner steps in training.", acts="train", ge=1, le=100)
    inner_lr: float = option(0.1, "Initial learning rates.", acts="train", gt=0)
    multi_steps: int = option(
        5000,
        "Meta-steps after which only the loss of the last inner step counts.",
        acts="train",
        ge=0,
    )
    first_order_steps: int = option(
        0, "Number of first meta-steps without second derivatives.", acts="train", ge=0
    )
    outer: Rule = option(Adam(lr=1e-3, schedule="cosine"), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        loss, last, gains = support_loss(learner, spec), self.inner_steps, learner.gains

        def loss_at(params: Params, batch: Batch, step: int) -> Tensor:
            return loss(at_step(params, min(step, last - 1), gains), batch, step)

        def path(meta: Meta, support: Batch, at: StepIndices, second: Tensor) -> list[Params]:
            weights, fixed = partition(meta["params"], lambda name: name in meta["rates"])
            state = Rates(meta["rates"], second.new_zeros(()), second)
            options: Any = {"state": state, "keep": at, "fixed": fixed}
            points = adapt(loss_at, weights, _rule(last), support, at[-1], **options).points
            steps = [min(max(step - 1, 0), last - 1) for step in at]
            return [at_step({**fixed, **p}, s, gains) for p, s in zip(points, steps, strict=True)]

        def fit(meta: Meta, support: Batch, at: StepIndices, key: Key) -> list[Params]:
            like = next(iter(meta["rates"].values()))
            return path(meta, support, at, like.new_ones(()))

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        init = partial(self._init, learner)
        options: Any = {"inner_steps": last, "init": init}
        outer = self.outer.build(meta_steps)
        method = episodic(learner, spec, outer, fit, predict, **options)
        assert method.update is not None
        task_grad = make_task_grad(self._task_loss(learner, spec, path), learner)
        step = make_step_over_tasks(task_grad, method.update, spec)
        return method._replace(task_grad=task_grad, step=step)

    def _init(self, learner: Learner, key: Key) -> Meta:
        params, last = learner.init(key), self.inner_steps
        weights = partition(trainable(params)[0], lambda name: name not in learner.gains)[0]
        rates = {name: x.new_full((last,), self.inner_lr) for name, x in weights.items()}
        steps = {n: params[n].expand(last, *params[n].shape).clone() for n in learner.gains}
        return {"params": {**params, **steps}, "rates": rates}

    def _task_loss(
        self, learner: Learner, spec: EpisodeSpec, path: Callable[..., list[Params]]
    ) -> Callable[[Meta, Episode], tuple[Tensor, Metrics]]:
        loss_of, last = criterion(spec), self.inner_steps

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, Metrics]:
            support, query = zero_padding(episode.support), zero_padding(episode.query)
            step = episode.info["step"]
            second = (step >= self.first_order_steps).to(step.dtype)
            points = path(meta, support, tuple(range(1, last + 1)), second)
            with padding_scope(query.weight, context=support.weight):
                outputs = [learner.apply(p, query.x, context=support.x) for p in points]
            class_mask = class_mask_of(support, outputs[-1].shape[-1])
            outputs = [mask_absent_classes(logits, class_mask) for logits in outputs]
            losses = torch.stack([loss_of(logits, *query[1:]) for logits in outputs])
            weights = importance(step, last, self.multi_steps)
            return (weights * losses).sum(), metrics(spec, outputs[-1], *query[1:])

        return task_loss


def at_step(params: Params, step: int, gains: tuple[str, ...]) -> Params:
    """The parameters with the `gains` of a step, which the meta has as [S, H]."""
    return {name: x[step] if name in gains else x for name, x in params.items()}


def importance(step: Tensor, steps: int, until: int) -> Tensor:
    """v_s of the losses after steps 1 .. S (equation 4; authors' schedule): [] -> [S].

    From 1/S each, all but the last fall linearly to 0.03/S at most, and the last takes the rest;
    from the meta-step `until` on the last alone counts."""
    alone = torch.zeros(steps, dtype=step.dtype, device=step.device)
    alone[-1].fill_(1)
    if until == 0:
        return alone
    early = (1 - step / until).clamp(min=LEAST) / steps
    shared = early * (1 - alone) + (1 - (steps - 1) * early) * alone
    return torch.where(step < until, shared, alone)


def _rule(steps: int) -> UpdateRule:
    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        rates, step, second = state
        # The derivative of a gradient times 0 or 1, so that one step serves both orders.
        grads = tree_map(lambda g: g.detach() + second * (g - g.detach()), grads)
        places = torch.arange(steps, dtype=step.dtype, device=step.device)
        here = (places == step.clamp(max=steps - 1)).to(step.dtype)
        updates = {name: -(here * rates[name]).sum() * grad for name, grad in grads.items()}
        return updates, Rates(rates, step + 1, second)

    return UpdateRule(lambda params: {}, update)
