"""Scores that need no training: what searchers have to beat before they are worth their cost."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.losses import criterion
from metalearn.nas.search import Ask, Data, Search, Searcher, need_data
from metalearn.nas.space import Genotype, Space, walk
from metalearn.tree import trainable, vmap
from metalearn.types import Batch, Key, Learner, Params

Measure = Literal["params", "flops", "grad_norm", "snip", "jacob_cov"]
OnData = Callable[[Learner, Callable[[Tensor, Tensor], Tensor], Params, Batch], Tensor]


def _gradient(
    learner: Learner, loss_of: Callable[[Tensor, Tensor], Tensor], params: Params, batch: Batch
) -> tuple[Params, Params]:
    moving, still = trainable(params)
    grads = torch.func.grad(
        lambda inner: loss_of(learner.apply({**inner, **still}, batch.x), batch.y)
    )(moving)
    return moving, grads


def grad_norm(
    learner: Learner, loss_of: Callable[[Tensor, Tensor], Tensor], params: Params, batch: Batch
) -> Tensor:
    """Euclidean norm of the training loss's gradient at the start (Abdelfattah et al. 2021, section
    3.2): [].
    """
    _, grads = _gradient(learner, loss_of, params, batch)
    return torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()


def snip(
    learner: Learner, loss_of: Callable[[Tensor, Tensor], Tensor], params: Params, batch: Batch
) -> Tensor:
    """Sum of |weight * gradient| (Lee et al. 2019, equation 4): []."""
    moving, grads = _gradient(learner, loss_of, params, batch)
    return torch.stack([(moving[name] * grads[name]).abs().sum() for name in moving]).sum()


def jacob_cov(
    learner: Learner, loss_of: Callable[[Tensor, Tensor], Tensor], params: Params, batch: Batch
) -> Tensor:
    """How unlike the inputs' slopes are (Mellor et al. 2020, arXiv:2006.04647v1, equation 2): [].

    -sum of log(v + k) + 1 / (v + k) over the eigenvalues v of the correlations [B, B]; k = 1e-5.
    With five images that is five numbers: a vote, no more.
    """
    slopes = torch.func.grad(lambda x: learner.apply(params, x).sum())(batch.x).flatten(1)
    slopes = slopes - slopes.mean(-1, keepdim=True)
    slopes = slopes * torch.rsqrt(slopes.square().sum(-1, keepdim=True) + 1e-12)
    values = torch.linalg.eigvalsh(slopes @ slopes.T) + 1e-5
    score: Tensor = -(values.log() + 1 / values).sum()
    return score


ON_DATA: dict[str, OnData] = {"grad_norm": grad_norm, "snip": snip, "jacob_cov": jacob_cov}


class Proxy(Component):
    """Rank a pool of random candidates by one number that costs no training, and train the first.

    `params` and `flops` are the proxies that every other one has to beat: more is better, whatever
    the task."""

    name: Literal["proxy"] = option("proxy", "the searcher")
    measure: Measure = option("flops", "the number; higher is taken for better")
    pool: int = option(64, "candidates ranked", ge=1, le=100_000)
    keep: int = option(1, "of them trained, as far as the budget goes", ge=1)

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            pool = list(itertools.islice(walk(space, key), self.pool))
            values = {genotype: self.value(space, genotype, data) for genotype in pool}
            order = sorted(pool, key=lambda genotype: -values[genotype])
            yield Ask(tuple(order[: min(self.keep, budget)]))

        return search

    def value(self, space: Space, genotype: Genotype, data: Data | None) -> float:
        """The proxy of one candidate: a property of the network, or the mean over folds on their
        training examples.
        """
        if self.measure not in ON_DATA:
            return float(getattr(space.cost(genotype), self.measure))
        folds = need_data(self.measure, data).folds
        assert data is not None
        said = float(
            data.book.run(
                "search", _on_data(space, genotype, self.measure), folds.keys, folds.train
            ).mean()
        )
        return said if math.isfinite(said) else -math.inf


@functools.lru_cache(maxsize=4096)
def _on_data(space: Space, genotype: Genotype, measure: str) -> Callable[..., Tensor]:
    learner = space.learner(genotype)
    one = functools.partial(ON_DATA[measure], learner, criterion(space.spec))
    return vmap(lambda key, train: one(learner.init(key), train))
