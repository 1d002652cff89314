"""Scores that need no training: a baseline for searchers that train."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.losses import criterion
from metalearn.nas.searchers.search import (
    Ask,
    Data,
    Search,
    Searcher,
    SearcherComponent,
    require_data,
)
from metalearn.nas.spaces.space import Genotype, Space, shuffled
from metalearn.tree import trainable, vmap
from metalearn.types import Batch, Key, Learner, Params

Measure = Literal["params", "flops", "grad_norm", "snip", "jacob_cov"]
LossFn = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> []
OnData = Callable[[Learner, LossFn, Params, Batch], Tensor]


def _gradient(
    learner: Learner, loss_fn: LossFn, params: Params, batch: Batch
) -> tuple[Params, Params]:
    weights, statistics = trainable(params)
    grads = torch.func.grad(
        lambda variables: loss_fn(learner.apply({**variables, **statistics}, batch.x), batch.y)
    )(weights)
    return weights, grads


def grad_norm(learner: Learner, loss_fn: LossFn, params: Params, batch: Batch) -> Tensor:
    """Return the norm of the initial training gradient (Abdelfattah et al. 2021, 3.2): []."""
    _, grads = _gradient(learner, loss_fn, params, batch)
    return torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()


def snip(learner: Learner, loss_fn: LossFn, params: Params, batch: Batch) -> Tensor:
    """Return the sum of |weight * gradient| (Lee et al. 2019, equation 4): []."""
    weights, grads = _gradient(learner, loss_fn, params, batch)
    return torch.stack([(weights[name] * grads[name]).abs().sum() for name in weights]).sum()


def jacob_cov(learner: Learner, loss_fn: LossFn, params: Params, batch: Batch) -> Tensor:
    """Return dissimilarity of input gradients (Mellor et al. 2020, arXiv:2006.04647v1, eq. 2): [].

    -sum of log(v + k) + 1 / (v + k) over the eigenvalues v of the correlations [B, B]; k = 1e-5.
    The score is noisy for few images: five images give five eigenvalues."""
    grads = torch.func.grad(lambda x: learner.apply(params, x).sum())(batch.x).flatten(1)
    grads = grads - grads.mean(-1, keepdim=True)
    grads = grads * torch.rsqrt(grads.square().sum(-1, keepdim=True) + 1e-12)
    values = torch.linalg.eigvalsh(grads @ grads.T) + 1e-5
    score: Tensor = -(values.log() + 1 / values).sum()
    return score


ON_DATA: dict[str, OnData] = {"grad_norm": grad_norm, "snip": snip, "jacob_cov": jacob_cov}


class Proxy(SearcherComponent):
    """Rank random candidates by a zero-cost proxy and train the best.

    `params` and `flops` are the baselines of the other scores: more is better on every task.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.Proxy(measure="params", keep=2).build(space)
    >>> next(search(ml.fold_in(0), 8, None)).genotypes[0]
    (3, 3, 4, 1, 1, 1)
    """

    name: Literal["proxy"] = option("proxy", "The searcher.")
    measure: Measure = option("flops", "The zero-cost proxy; higher is better.")
    pool: int = option(64, "Number of candidates ranked.", ge=1, le=100_000)
    keep: int = option(1, "Number of best candidates trained, within the budget.", ge=1)

    @property
    def uses_data(self) -> bool:
        return self.measure in ON_DATA

    def build(self, space: Space) -> Searcher:
        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            pool = list(itertools.islice(shuffled(space, key), self.pool))
            values = {genotype: self.value(space, genotype, data) for genotype in pool}
            order = sorted(pool, key=lambda genotype: -values[genotype])
            yield Ask(tuple(order[: min(self.keep, budget)]))

        return search

    def value(self, space: Space, genotype: Genotype, data: Data | None) -> float:
        """Return a candidate's score: its cost, or a mean over training examples of the folds."""
        if self.measure not in ON_DATA:
            return float(space.cost(genotype)._asdict()[self.measure])
        folds, ledger = require_data(self.measure, data)
        score = _on_data(space, genotype, self.measure)
        value = float(ledger.run("search", score, folds.keys, folds.train).mean())
        return value if math.isfinite(value) else -math.inf


@functools.lru_cache(maxsize=4096)
def _on_data(space: Space, genotype: Genotype, measure: str) -> Callable[..., Tensor]:
    learner = space.learner(genotype)
    measure_fn = functools.partial(ON_DATA[measure], learner, criterion(space.spec))
    return vmap(lambda key, train: measure_fn(learner.init(key), train))
