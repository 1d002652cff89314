"""A step size for each task, chosen by cross-validation over its support set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.inner.method import LearnFunctions, StepIndices, make_learn_functions
from metalearn.losses import criterion
from metalearn.padding import padding_scope, predict_with_example_weights
from metalearn.transfer.fine_tuning.adaptation import Adaptation
from metalearn.transfer.fine_tuning.grid import FineTuneGrid
from metalearn.tree import vmap
from metalearn.types import Batch, EpisodeSpec, Key, Meta, Params

# (meta, support set, step indices, key) -> held-out losses [P, R], number of held-out examples []
HeldOut = Callable[[Meta, Batch, StepIndices, Key], tuple[Tensor, Tensor]]


class FineTuneCrossValidated(FineTuneGrid):
    """Fine-tune with the step size that minimises the loss on held-out shots of the support set.

    r* = argmin_r sum_f L(f(x_f; phi_{r,f}), y_f),  phi_{r,f} after s steps of fine_tune by inner_lr
    times the r-th of `lr_factors`, on the support set without fold f. Fold f holds out shots f,
    f + F, ... of each class that has two, F the least of `folds` and the shots: by default one shot
    a class, as many folds are better for a choice (Shimabucoro et al. 2023, arXiv:2307.02732). The
    choice is repeated for each number of steps; steps on the folds, and on the whole support set
    with every step size, are included in the cost. A task without a class of two shots uses the
    factor nearest to 1.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.FineTuneCrossValidated(inner_lr=0.1).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    name: Literal["fine_tune_cross_validated"] = option(  # type: ignore[assignment]
        "fine_tune_cross_validated", "The method."
    )
    folds: int = option(
        10,
        "Maximum number of folds; with one fold per shot, a fold is one shot per class.",
        acts="adapt",
        ge=2,
    )

    def learning(self, adaptation: Adaptation, spec: EpisodeSpec) -> LearnFunctions:
        if spec.shots < 2:
            text = f"is {spec.shots}, but {self.name} holds out one shot of each class and trains"
            hint = "on the others: use at least 2, or fine_tune_ensemble, which holds out none"
            raise ConfigError(("task.shots", f"{text} {hint}"))
        losses = self._held_out(adaptation, spec)
        distances = [abs(body - 1) + abs(head - 1) for body, head in self.grid]
        default = distances.index(min(distances))

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            loss, num_held_out = losses(meta, support, steps, key)
            best = torch.where(loss.isnan(), torch.inf, loss).argmin(-1)  # [P]
            best = torch.where(num_held_out > 0, best, default)
            problem = adaptation.start(meta, support, key)
            paths = self.paths(adaptation, problem, steps)
            chosen = [
                {name: leaf.index_select(0, index).squeeze(0) for name, leaf in params.items()}
                for params, index in zip(paths, best.split(1), strict=True)
            ]
            return [{**problem.fixed, **params} for params in chosen]

        loops = (min(self.folds, spec.shots) + 1) * len(self.grid)
        return make_learn_functions(
            adapt_task, adaptation.predict, features=adaptation.features, paths=loops
        )

    def _held_out(self, adaptation: Adaptation, spec: EpisodeSpec) -> HeldOut:
        """Return the function of the losses of all paths on held-out shots."""
        loss_of = criterion(spec)
        predict = predict_with_example_weights(adaptation.predict, adaptation.features)

        def losses(
            meta: Meta, support: Batch, steps: StepIndices, key: Key
        ) -> tuple[Tensor, Tensor]:
            def fold(weight: Tensor, held_out: Tensor) -> Tensor:
                """Return the losses [R, P] of a fold, summed over its held-out examples."""
                fold_support = support._replace(weight=weight)
                with padding_scope(weight):
                    problem = adaptation.start(meta, fold_support, key)
                    # A separate start for each fold, so that all steps have equal cost.
                    start = {n: leaf + 0 * weight.sum() for n, leaf in problem.params.items()}
                    paths = self.paths(adaptation, problem._replace(params=start), steps)

                def sum_losses(path: list[Params]) -> Tensor:
                    adapted = [{**problem.fixed, **params} for params in path]
                    predictions = predict(meta, adapted, fold_support, support.x, held_out)
                    means = torch.stack([loss_of(p, support.y, held_out) for p in predictions])
                    return torch.where(held_out.sum() > 0, held_out.sum() * means, 0)

                total: Tensor = vmap(sum_losses)(paths)
                return total

            shots = max(len(support.y) // spec.ways, 2)
            weights, held_out = split_folds(support, min(self.folds, shots), spec)
            return vmap(fold)(weights, held_out).sum(0).T, held_out.sum()

        return losses


def split_folds(support: Batch, count: int, spec: EpisodeSpec) -> tuple[Tensor, Tensor]:
    """Return weights [F, B] of the training and of the held-out examples of `count` folds.

    Example n of its class, from 0, is held out in fold n mod F, if its class has two; in regression
    all examples are of one class."""
    y, weight = support.y, support.weight
    weight = torch.ones(len(y), dtype=spec.dtype, device=y.device) if weight is None else weight
    classes = spec.classification and y.dim() == 1
    labels = y if classes else torch.zeros(len(y), dtype=torch.int64, device=y.device)
    same = (labels.unsqueeze(1) == labels) & (weight > 0)  # [B, B]
    index_in_class, total = same.tril(-1).sum(1), same.sum(1)
    fold = torch.arange(count, device=y.device).unsqueeze(1)
    held_out = (index_in_class % count == fold) & (total > 1)  # [F, B]
    return torch.where(held_out, 0, weight), torch.where(held_out, weight, 0)
