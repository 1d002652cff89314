"""One-shot search with single paths (Guo et al. 2020, arXiv:1904.00420)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from metalearn.component import option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.rules import sgd
from metalearn.losses import criterion
from metalearn.nas.searchers.search import (
    Ask,
    Data,
    Search,
    Searcher,
    SearcherComponent,
    require_data,
)
from metalearn.nas.spaces.space import Genotype, Space, extract_subnet, insert_subnet, shuffled
from metalearn.rng import fold_in
from metalearn.tree import vmap
from metalearn.types import Batch, Key, Params


class OneShot(SearcherComponent):
    """Train shared weights on random paths, rank candidates with them, and train the best.

    With one shot the pool is ranked by the training loss. Departure: the authors search the pool by
    evolution; here it is drawn at random, as spaces are small and scoring a candidate costs one
    forward pass.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.OneShot(pool=16).build(space)
    """

    name: Literal["one-shot"] = option("one-shot", "The searcher.")
    steps: int = option(60, "Single-path steps of the shared weights.", ge=1, le=100_000)
    lr: float = option(0.1, "Step size of the shared weights.", gt=0)
    pool: int = option(64, "Number of candidates ranked with the shared weights.", ge=1, le=100_000)
    keep: int = option(1, "Number of best candidates trained separately, within the budget.", ge=1)

    @property
    def uses_data(self) -> bool:
        return True

    def build(self, space: Space) -> Searcher:
        train_path, held_out_loss = _steps(space, self.lr)

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            (train, held_out, keys), ledger = require_data("one-shot", data)
            shared = vmap(space.supernet.init)(keys)
            lanes, size = train.x.shape[:2]
            counts = {"gradient_steps": lanes, "examples": lanes * size}
            for path in itertools.islice(_paths(space, fold_in(key, "paths")), self.steps):
                subnet = extract_subnet(space, path, shared)
                subnet = ledger.run("search", train_path(path), subnet, train, **counts)
                shared = insert_subnet(shared, subnet)
            losses = {}
            for genotype in itertools.islice(shuffled(space, fold_in(key, "pool")), self.pool):
                subnet = extract_subnet(space, genotype, shared)
                loss_fn = held_out_loss(genotype)
                loss = float(ledger.run("search", loss_fn, subnet, train, held_out).mean())
                losses[genotype] = loss if math.isfinite(loss) else math.inf
            ranked = sorted(losses, key=losses.__getitem__)
            yield Ask(tuple(ranked[: min(self.keep, budget)]))

        return search


def _paths(space: Space, key: Key) -> itertools.chain[Genotype]:
    """Return random representatives in endless rounds, each once per round."""
    return itertools.chain.from_iterable(
        shuffled(space, fold_in(key, turn)) for turn in itertools.count()
    )


def _steps(
    space: Space, lr: float
) -> tuple[
    Callable[[Genotype], Callable[..., Params]], Callable[[Genotype], Callable[..., Tensor]]
]:
    """Return (genotype -> one step of its weights [L, ...], genotype -> its held-out loss [L]).

    Each function is built once per genotype."""
    loss_fn = criterion(space.spec)

    @functools.cache
    def train_path(genotype: Genotype) -> Callable[..., Params]:
        loss = support_loss(space.learner(genotype), space.spec)

        def step(params: Params, train: Batch) -> Params:
            return adapt(loss, params, sgd(lr), train, 1, keep=(1,)).points[-1]

        return vmap(step)

    @functools.cache
    def held_out_loss(genotype: Genotype) -> Callable[..., Tensor]:
        learner = space.learner(genotype)

        def loss(params: Params, train: Batch, held_out: Batch) -> Tensor:
            return loss_fn(learner.apply(params, held_out.x, context=train.x), held_out.y)

        return vmap(loss)

    return train_path, held_out_loss
