"""Gradient boosting of trees on each new task, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.method import as_step_indices, task_keys
from metalearn.inner.requirements import require_classes
from metalearn.padding import zero_padding
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Key,
    Learned,
    Learner,
    Ledger,
    Meta,
    MetaState,
    Method,
    NullLedger,
    Traits,
)

LEAST = -30.0  # log p of a class without an example
# Trees are compared and split, not multiplied: nobody counts their FLOPs.
UNCOUNTED: dict[str, Any] = dict.fromkeys(("flops", "flops_elementwise", "flops_architecture"))


class GradientBoosting(MethodComponent):
    """Boosted regression trees, fitted to the support set of each new task without pretraining.

    F_s = F_{s-1} + rate * trees fitted to the gradient of the deviance (Friedman 2001, "Greedy
    function approximation", algorithm 6); F_0 are the frequencies of the classes. A step is one
    round of trees, one tree per class. By sklearn.ensemble.GradientBoostingClassifier, on the host,
    one task after another; examples are used as they are, without the model. The outputs are
    log p [M, N].

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=()).build(source.spec)
    >>> method = ml.transfer.GradientBoosting(depth=2).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "scratch"
    can_be_contained: ClassVar[bool] = False
    name: Literal["gradient_boosting"] = option("gradient_boosting", "The method.")
    rate: float = option(0.1, "Learning rate (shrinkage) of each tree.", acts="adapt", gt=0, le=1)
    depth: int = option(3, "Maximum depth of a tree.", acts="adapt", ge=1, le=100)
    subsample: float = option(
        1.0, "Fraction of the rows used for each tree.", acts="adapt", gt=0, le=1
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; refuses regression."""
        del learner, meta_steps
        require_classes(self.name, spec)

        def init(key: Key) -> MetaState:
            return MetaState({}, {}, None, torch.zeros((), dtype=spec.dtype, device=spec.device))

        def learn(
            meta: Meta,
            support: Batch,
            query_x: Tensor,
            steps: int | Sequence[int],
            key: Key | None = None,
            ledger: Ledger | None = None,
            query_weight: Tensor | None = None,
        ) -> Learned:
            del meta
            if query_weight is not None:  # padding may hold anything
                query_x = zero_padding(Batch(query_x, query_weight, query_weight)).x
            points, tasks = as_step_indices(steps), support.x.shape[0]
            ledger = NullLedger() if ledger is None else ledger
            counts = {"tasks": tasks, **UNCOUNTED}
            rows = tasks * points[-1] * support.x.shape[1]
            args = support, task_keys(key, tasks), points[-1]
            models = ledger.run("adapt", self._fit, *args, examples=rows, **counts)
            found = ledger.run("predict", _predict, models, query_x, points, spec.ways, **counts)
            return Learned(found, {})

        traits = Traits(consumes="nothing", host_side=True)
        return Method(spec, traits, init, learn)

    def _fit(self, support: Batch, keys: Tensor, rounds: int) -> list[Any]:
        """A classifier of each task [T]; of a task with one class, that class."""
        from sklearn.ensemble import GradientBoostingClassifier

        models: list[Any] = []
        for task, key in enumerate(keys.tolist()):
            x, y = _rows(support.x[task]), support.y[task].cpu().numpy()
            weight = None if support.weight is None else support.weight[task].double().cpu().numpy()
            if weight is not None:
                x, y, weight = x[weight > 0], y[weight > 0], weight[weight > 0]
            if len(np.unique(y)) < 2:
                models.append(int(y[0]))
                continue
            made = GradientBoostingClassifier(
                n_estimators=max(1, rounds),
                learning_rate=self.rate,
                max_depth=self.depth,
                subsample=self.subsample,
                random_state=key & 0x7FFFFFFF,
            )
            models.append(made.fit(x, y, weight))
        return models


def _rows(x: Tensor) -> Any:
    """[B, *X] -> [B, F] as float64 of numpy."""
    return x.detach().flatten(1).double().cpu().numpy()


def _predict(models: list[Any], query_x: Tensor, points: tuple[int, ...], ways: int) -> Tensor:
    """log p [T, P, M, N] after each number of rounds."""
    found = torch.full((len(models), len(points), query_x.shape[1], ways), LEAST)
    for task, model in enumerate(models):
        if isinstance(model, int):
            found[task, :, :, model] = 0.0
            continue
        x = _rows(query_x[task])
        if not len(x):
            continue
        stages = [model.init_.predict_proba(x), *model.staged_predict_proba(x)]
        logs = np.log(np.maximum(np.stack([stages[point] for point in points]), 1e-13))
        classes = torch.from_numpy(model.classes_)
        found[task][..., classes] = torch.from_numpy(logs).to(found.dtype)
    return found.to(query_x.device, query_x.dtype)
