"""Differentiable architecture search (Liu, Simonyan & Yang 2019, arXiv:1806.09055, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.rules import adam, sgd
from metalearn.losses import criterion
from metalearn.nas.searchers.search import (
    Ask,
    Data,
    Search,
    Searcher,
    SearcherComponent,
    require_data,
)
from metalearn.nas.spaces.space import Space, argmax_genotype, softmax_masks
from metalearn.rng import fold_in, normal
from metalearn.tree import add, mean_over_tasks, vmap
from metalearn.types import Batch, Key, Params, State, UpdateRule

Arch = Params  # logits [choices] for each place, by the place's name


def arch_loss(
    space: Space, lr: float, first_order: bool
) -> Callable[[Arch, Params, Batch, Batch], Tensor]:
    """Return the loss of the architecture (equation 6): (arch, weights, train, held-out) -> [].

    L_held(w - lr * grad_w L_train(w, arch), arch); first order (section 2.3): L_held(w, arch). The
    step is one of `adapt`, so that the gradient through it is exact, where the paper takes a finite
    difference."""
    loss_fn, train_loss = criterion(space.spec), support_loss(space.supernet, space.spec)

    def loss(arch: Arch, weights: Params, train: Batch, held_out: Batch) -> Tensor:
        steps = 0 if first_order else 1
        # The masks are passed with the weights: gradients flow through them, no step updates them.
        params = {**weights, **softmax_masks(arch)}
        end = adapt(train_loss, params, sgd(lr), train, steps, keep=(steps,)).points[-1]
        return loss_fn(space.supernet.apply(end, held_out.x, context=train.x), held_out.y)

    return loss


def weight_step(space: Space, lr: float) -> Callable[[Arch, Params, Batch], Params]:
    """Return one step of the weights on training examples: (arch, weights, train) -> weights."""
    train_loss = support_loss(space.supernet, space.spec)

    def step(arch: Arch, weights: Params, train: Batch) -> Params:
        params = {**weights, **softmax_masks(arch)}
        end = adapt(train_loss, params, sgd(lr), train, 1, keep=(1,)).points[-1]
        return {name: end[name] for name in weights}

    return step


def start_arch(space: Space, key: Key) -> Arch:
    """Return near-uniform logits: normal with standard deviation 0.001, as in the authors' code."""
    arch = {}
    for place in space.places:
        noise = normal(fold_in(key, place.name), (len(place.choices),), space.spec.dtype)
        arch[place.name] = 1e-3 * noise.to(space.spec.device)
    return arch


class DARTS(SearcherComponent):
    """Gradient descent on the mixture weights of a supernet, with the held-out loss of folds.

    The folds share the architecture; each has its own weights. At the end the choice of largest
    weight is taken at every place, `none` included (as NAS-Bench-201's DARTS), and that one
    candidate is trained. Departure: the architecture's gradient is the mean over folds, each of
    which is small.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.DARTS(steps=10).build(space)
    """

    name: Literal["darts"] = option("darts", "The searcher.")
    steps: int = option(30, "Steps of architecture and weights.", ge=1, le=100_000)
    arch_lr: float = option(0.03, "Step size of the architecture's Adam.", gt=0)
    lr: float = option(
        0.1, "xi, step size of the weights, also in the look-ahead step of the architecture.", gt=0
    )
    first_order: bool = option(
        False, "First-order DARTS: use xi = 0 in the gradient of the architecture."
    )

    @property
    def uses_data(self) -> bool:
        return True

    def build(self, space: Space) -> Searcher:
        rule = self._rule()
        gradients = 2 if self.first_order else 3

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            data = require_data("darts", data)
            step = self._step(space)
            train, held_out, keys = data.folds
            arch = start_arch(space, fold_in(key, "arch"))
            weights = vmap(space.supernet.init)(keys)
            state = rule.init(arch)
            count = gradients * len(keys)
            # Of a supernet's FLOPs it is unknown how many belong to the architecture found.
            counts: dict[str, Any] = {
                "gradient_steps": count,
                "examples": count * train.x.shape[1],
                "flops_architecture": None,
            }
            for _ in range(self.steps):
                arch, state, weights = data.ledger.run(
                    "search", step, arch, state, weights, train, held_out, **counts
                )
            yield Ask((argmax_genotype(space, arch),))

        return search

    def _rule(self) -> UpdateRule:
        return adam(self.arch_lr, beta1=0.5)

    def _step(self, space: Space) -> Callable[..., tuple[Arch, State, Params]]:
        """Return one step of the architecture (mean over folds), then of each fold's weights."""
        grad = torch.func.grad(arch_loss(space, self.lr, self.first_order))
        arch_grads = vmap(grad, in_dims=(None, 0, 0, 0))
        step_weights = vmap(weight_step(space, self.lr), in_dims=(None, 0, 0))
        rule = self._rule()

        def step(
            arch: Arch, state: State, weights: Params, train: Batch, held_out: Batch
        ) -> tuple[Arch, State, Params]:
            grads = mean_over_tasks(arch_grads(arch, weights, train, held_out))
            zero = next(iter(arch.values())).new_zeros(())
            updates, state = rule.update(grads, state, arch, zero)
            arch = add(arch, updates)
            return arch, state, step_weights(arch, weights, train)

        return step
