"""Differentiable architecture search (Liu, Simonyan & Yang 2019, arXiv:1806.09055, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.rules import adam, sgd
from metalearn.losses import criterion
from metalearn.nas.search import Ask, Data, Search, Searcher, need_data
from metalearn.nas.space import Space, hardened, softened
from metalearn.rng import fold_in, normal
from metalearn.tree import add, mean_over_tasks, vmap
from metalearn.types import Batch, Key, Params, State, UpdateRule

Arch = Params  # free numbers [words] for each place, by the place's name


def arch_loss(
    space: Space, lr: float, first_order: bool
) -> Callable[[Arch, Params, Batch, Batch], Tensor]:
    """What the architecture is to lower (equation 6): (arch, weights, train, held) -> [].

    L_held(w - lr * grad_w L_train(w, arch), arch); first order (section 2.3): L_held(w, arch). The
    step is one of `adapt`, so that the gradient through it is exact, where the paper takes a finite
    difference."""
    loss_of = criterion(space.spec)

    def loss(arch: Arch, weights: Params, train: Batch, held: Batch) -> Tensor:
        steps = 0 if first_order else 1
        # The masks travel with the weights: a gradient flows through what `adapt` is given, and is
        # not moved.
        end = adapt(at, {**weights, **softened(arch)}, sgd(lr), train, steps, keep=(steps,)).points[
            -1
        ]
        return loss_of(space.supernet.apply(end, held.x, context=train.x), held.y)

    def at(params: Params, batch: Batch, step: int) -> Tensor:
        return loss_of(space.supernet.apply(params, batch.x), batch.y)

    return loss


def weight_step(space: Space, lr: float) -> Callable[[Arch, Params, Batch], Params]:
    """One step of the weights on the training examples: (arch, weights, train) -> weights."""
    loss_of = criterion(space.spec)

    def move(arch: Arch, weights: Params, train: Batch) -> Params:
        end = adapt(at, {**weights, **softened(arch)}, sgd(lr), train, 1, keep=(1,)).points[-1]
        return {name: end[name] for name in weights}

    def at(params: Params, batch: Batch, step: int) -> Tensor:
        return loss_of(space.supernet.apply(params, batch.x), batch.y)

    return move


def start_arch(space: Space, key: Key) -> Arch:
    """Nearly even: normal of deviation 0.001, as the authors' code."""
    made = {}
    for place in space.places:
        noise = normal(fold_in(key, place.name), (len(place.words),), space.spec.dtype)
        made[place.name] = 1e-3 * noise.to(space.spec.device)
    return made


class DARTS(Component):
    """One supernet a fold; the mixture of its operations is moved downhill in the folds' held-out
    loss.

    The folds share the architecture and have weights of their own. At the end the strongest word of
    every place is taken, none among them (as NAS-Bench-201's DARTS), and that one candidate is
    trained. Departure: the architecture moves by the mean over folds, each of which is small.
    """

    name: Literal["darts"] = option("darts", "the searcher")
    steps: int = option(30, "steps of architecture and weights", ge=1, le=100_000)
    arch_lr: float = option(0.03, "step size of the architecture's Adam", gt=0)
    lr: float = option(
        0.1, "xi, step size of the weights, and of the step that is looked ahead", gt=0
    )
    first_order: bool = option(
        False, "xi = 0 for the architecture: the weights do not answer to it"
    )

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""
        step, rule = self._step(space), self._rule()
        gradients = 2 if self.first_order else 3

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            data = need_data("darts", data)
            train, held, keys = data.folds
            arch = start_arch(space, fold_in(key, "arch"))
            weights = vmap(space.supernet.init)(keys)
            state = rule.init(arch)
            spent = gradients * len(keys)
            # Most of a supernet's work is none of the architecture's that comes out of it.
            counts: dict[str, Any] = {
                "gradient_steps": spent,
                "examples": spent * train.x.shape[1],
                "flops_architecture": None,
            }
            for _ in range(self.steps):
                arch, state, weights = data.book.run(
                    "search", step, arch, state, weights, train, held, **counts
                )
            yield Ask((hardened(space, arch),))

        return search

    def _rule(self) -> UpdateRule:
        return adam(self.arch_lr, beta1=0.5)

    def _step(self, space: Space) -> Callable[..., tuple[Arch, State, Params]]:
        """First the architecture, by the mean over lanes, then the weights of every lane at the new
        architecture.
        """
        slope = vmap(
            torch.func.grad(arch_loss(space, self.lr, self.first_order)), in_dims=(None, 0, 0, 0)
        )
        follow = vmap(weight_step(space, self.lr), in_dims=(None, 0, 0))
        rule = self._rule()

        def step(
            arch: Arch, state: State, weights: Params, train: Batch, held: Batch
        ) -> tuple[Arch, State, Params]:
            grads = mean_over_tasks(slope(arch, weights, train, held))
            updates, state = rule.update(
                grads, state, arch, next(iter(arch.values())).new_zeros(())
            )
            arch = add(arch, updates)
            return arch, state, follow(arch, weights, train)

        return step
