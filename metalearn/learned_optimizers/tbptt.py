"""Truncated back-propagation through the inner run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.learned_optimizers.estimator import Estimator, Seen
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.learned import Theta
from metalearn.tree import detach
from metalearn.types import Key


class TBPTT(Component):
    """Truncated back-propagation (Andrychowicz et al. 2016): the exact gradient of a window, none
    from before it.

    g = d/dtheta mean over the window of L(phi_s(theta)), the run before the window a constant.
    Cheap and without noise; biased towards what pays within one window.
    """

    name: Literal["tbptt"] = option("tbptt", "the estimator")

    def build(self) -> Estimator:
        def see(run: Run, theta: Theta, held: Inner, problem: Problem, key: Key) -> Seen:
            del key

            def loss(theta: Theta) -> tuple[Tensor, tuple[Inner, Tensor]]:
                after, value, diverged = run.window(theta, held, problem)
                return value, (detach(after), diverged)

            value, pull, (after, diverged) = torch.func.vjp(loss, theta, has_aux=True)  # type: ignore[misc]
            (grads,) = pull(torch.ones_like(value), retain_graph=False)
            return Seen(grads, value.detach(), diverged, after)

        return Estimator(lambda run, theta, problem: detach(run.begin(theta, problem)), see, 1)
