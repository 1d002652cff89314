"""One-shot search with single paths (Guo et al. 2020, arXiv:1904.00420): one supernet, many
architectures' weights.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.rules import sgd
from metalearn.losses import criterion
from metalearn.nas.search import Ask, Data, Search, Searcher, need_data
from metalearn.nas.space import Genotype, Space, carve, put_back, walk
from metalearn.rng import fold_in
from metalearn.tree import vmap
from metalearn.types import Batch, Key, Params


class OneShot(Component):
    """Train shared weights along one random path a step, rank a pool of candidates by them, train
    the best alone.

    At one shot the pool is ranked by the training loss. Departure: the authors search the pool by
    evolution; here it is drawn at random, as spaces are small and a look at a candidate costs one
    forward pass."""

    name: Literal["one-shot"] = option("one-shot", "the searcher")
    steps: int = option(60, "single-path steps of the shared weights", ge=1, le=100_000)
    lr: float = option(0.1, "their step size", gt=0)
    pool: int = option(64, "candidates ranked by the shared weights", ge=1, le=100_000)
    keep: int = option(1, "of them trained alone, as far as the budget goes", ge=1)

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""
        train_path, look = _steps(space, self.lr)

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            train, held, keys = need_data("one-shot", data).folds
            assert data is not None
            shared = vmap(space.supernet.init)(keys)
            lanes, size = train.x.shape[:2]
            counts = {
                "gradient_steps": lanes,
                "examples": lanes * size,
            }  # each path's work is its architecture's own
            for path in itertools.islice(_paths(space, fold_in(key, "paths")), self.steps):
                part = carve(space, path, shared)
                shared = put_back(
                    shared, data.book.run("search", train_path(path), part, train, **counts)
                )
            losses = {}
            for genotype in itertools.islice(walk(space, fold_in(key, "pool")), self.pool):
                part = carve(space, genotype, shared)
                loss = float(data.book.run("search", look(genotype), part, train, held).mean())
                losses[genotype] = loss if math.isfinite(loss) else math.inf
            order = sorted(losses, key=losses.__getitem__)
            yield Ask(tuple(order[: min(self.keep, budget)]))

        return search


def _paths(space: Space, key: Key) -> itertools.chain[Genotype]:
    """Random representatives without end; each comes once in every round."""
    return itertools.chain.from_iterable(
        walk(space, fold_in(key, turn)) for turn in itertools.count()
    )


def _steps(
    space: Space, lr: float
) -> tuple[
    Callable[[Genotype], Callable[..., Params]], Callable[[Genotype], Callable[..., Tensor]]
]:
    """(one step of a path's weights [L, ...] on train, held loss [L] of a path's weights), made
    once a genotype.
    """
    loss_of = criterion(space.spec)

    @functools.cache
    def train_path(genotype: Genotype) -> Callable[..., Params]:
        learner = space.learner(genotype)

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def one(params: Params, train: Batch) -> Params:
            return adapt(loss, params, sgd(lr), train, 1, keep=(1,)).points[-1]

        return vmap(one)

    @functools.cache
    def look(genotype: Genotype) -> Callable[..., Tensor]:
        learner = space.learner(genotype)

        def one(params: Params, train: Batch, held: Batch) -> Tensor:
            return loss_of(learner.apply(params, held.x, context=train.x), held.y)

        return vmap(one)

    return train_path, look
