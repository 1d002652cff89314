"""A small classifier, its tasks and its losses in torch alone, for references that are written out
by hand; float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn import rng
from metalearn.models.mlp import MLP
from metalearn.types import Batch, Episode, EpisodeSpec, Learner, Params

F64 = torch.float64
WAYS, SHOTS, QUERIES, INPUTS = 3, 4, 5, 6


def normal(name: str, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(3, name), shape, F64)


def classifier(ways: int = WAYS) -> Learner:
    return MLP(sizes=(5,), activation="tanh").build(spec_of(ways))


def spec_of(ways: int, queries: int = QUERIES) -> EpisodeSpec:
    return EpisodeSpec("classification", ways, SHOTS, queries, (INPUTS,), ways, 20, dtype=F64)


SPEC = spec_of(WAYS)


def forward(params: Params, x: Tensor) -> Tensor:
    """The classifier in torch alone."""
    return features(params, x) @ params["head.weight"].T + params["head.bias"]


def features(params: Params, x: Tensor) -> Tensor:
    return torch.tanh(x @ params["layers.0.weight"].T + params["layers.0.bias"])


def cross_entropy(params: Params, batch: Batch) -> Tensor:
    return torch.nn.functional.cross_entropy(forward(params, batch.x), batch.y)


def episode_of(name: str, ways: int = WAYS, queries: int = QUERIES) -> Episode:
    """Classes around random means; support and query in a mixed order."""
    means = 2 * normal(f"{name} means", ways, INPUTS)

    def batch(part: str, each: int) -> Batch:
        y = rng.permutation(rng.fold_in(9, name, part), ways * each) % ways
        return Batch(means[y] + normal(f"{name} {part}", ways * each, INPUTS), y)

    return Episode(batch("support", SHOTS), batch("query", queries), {"key": rng.fold_in(1, name)})


def stacked(episodes: list[Episode]) -> Episode:
    """Episodes of T tasks in one, leaves [T, ...]."""

    def both(batches: list[Batch]) -> Batch:
        return Batch(torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches]))

    keys = torch.stack([e.info["key"] for e in episodes])
    return Episode(
        both([e.support for e in episodes]), both([e.query for e in episodes]), {"key": keys}
    )


def by_hand(
    meta: Params,
    episode: Episode,
    steps: int,
    moves: Callable[[str], bool],
    rates: Params,
    first_order: bool = False,
) -> tuple[Params, Params]:
    """(gradients of the query loss for meta, for rates) through a written-out inner loop that keeps
    its graph."""
    start = {name: value.clone().requires_grad_() for name, value in meta.items()}
    rates = {name: value.clone().requires_grad_() for name, value in rates.items()}
    now = dict(start)
    for _ in range(steps):
        names = [name for name in now if moves(name)]
        loss = cross_entropy(now, episode.support)
        found = torch.autograd.grad(
            loss, [now[name] for name in names], create_graph=not first_order
        )
        now |= {name: now[name] - rates[name] * grad for name, grad in zip(names, found)}
    loss = cross_entropy(now, episode.query)
    leaves = [*start.values(), *rates.values()]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads)]
    return dict(zip(start, filled)), dict(zip(rates, filled[len(start) :]))
