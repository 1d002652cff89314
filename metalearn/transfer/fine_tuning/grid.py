"""Options of methods that fine-tune with several step sizes in parallel, from one start."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.heads import WEIGHT, is_head
from metalearn.inner.method import StepIndices
from metalearn.transfer.fine_tune import FineTune
from metalearn.transfer.fine_tuning.adaptation import Adaptation, Problem
from metalearn.tree import tree_map, vmap
from metalearn.types import EpisodeSpec, Learner, Method, Params, UpdateRule

Factors = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=100)]


class FineTuneGrid(FineTune):
    """Fine-tuning whose rule has its step size times each of `lr_factors`."""

    palette_index: ClassVar[int] = MethodComponent.palette_index
    lr_factors: Factors = option(
        (0.2, 1.0, 5.0), "Multipliers of the step size, one inner loop each.", acts="adapt"
    )
    head_lr_factors: Factors | None = option(
        None,
        "Multipliers of the step size of the head, combined with each of lr_factors; null: "
        "the same factor as the other layers.",
        acts="adapt",
    )

    @model_validator(mode="after")
    def _check_factors(self) -> FineTuneGrid:
        for name in ("lr_factors", "head_lr_factors"):
            factors = getattr(self, name) or ()
            if len(set(factors)) < len(factors):
                raise ValueError(f"{name} must be different (got {list(factors)})")
        if self.adapts == "head" and self.head_lr_factors is not None:
            raise ValueError(
                "with adapts: head, lr_factors apply to the head: omit head_lr_factors"
            )
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        if self.head_lr_factors is not None and not self.parameter_filter(learner)(WEIGHT):
            text = "are set, but adapts does not include the head: omit one of the two"
            raise ConfigError(("method.head_lr_factors", text))
        return super().build(learner, spec, meta_steps)

    @property
    def grid(self) -> list[tuple[float, float]]:
        """Return the factors of each path: for the step size of the body and of the head."""
        if self.head_lr_factors is None:
            return [(factor, factor) for factor in self.lr_factors]
        return list(product(self.lr_factors, self.head_lr_factors))

    def paths(self, adaptation: Adaptation, problem: Problem, points: StepIndices) -> list[Params]:
        """Return the adapted parameters of all paths of `grid` at each of `step_indices`.

        The leaves have shape [R, ...]."""
        rule, grid = self.rule(), self.grid

        def path(params: Params, factors: Tensor) -> list[Params]:
            body, head = factors.unbind()
            scaled = scale_updates(rule, lambda name: head if is_head(name) else body)
            return adaptation.params_at(problem._replace(params=params), scaled, points)

        like = next(iter(problem.params.values()))
        factors = torch.tensor(grid, dtype=like.dtype, device=like.device)  # [R, 2]
        # A separate start for each path, so that its first step is computed, too: the cost model
        # assumes that all steps have equal cost.
        params = tree_map(lambda leaf: leaf.expand(len(grid), *leaf.shape), problem.params)
        path_params: list[Params] = vmap(path)(params, factors)
        return path_params


def scale_updates(rule: UpdateRule, factor: Callable[[str], Tensor]) -> UpdateRule:
    """Return `rule` with updates of flat parameters scaled by `factor(name)`, as a step size is."""

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        updates, state = rule.update(grads, state, params, loss)
        return {name: factor(name) * value for name, value in updates.items()}, state

    return UpdateRule(rule.init, update)
