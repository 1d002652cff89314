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
# Trees compare and split; their FLOPs are not counted.
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
        """Build the method for tasks of `spec`; raises ConfigError for regression."""
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
            step_indices, tasks = as_step_indices(steps), support.x.shape[0]
            ledger = NullLedger() if ledger is None else ledger
            counts = {"tasks": tasks, **UNCOUNTED}
            num_examples = tasks * step_indices[-1] * support.x.shape[1]
            fit_args = support, task_keys(key, tasks), step_indices[-1]
            models = ledger.run("adapt", self._fit, *fit_args, examples=num_examples, **counts)
            predict_args = models, query_x, step_indices, spec
            predictions = ledger.run("predict", _predict, *predict_args, **counts)
            return Learned(predictions, {})

        traits = Traits(consumes="nothing", host_side=True)
        return Method(spec, traits, init, learn)

    def _fit(self, support: Batch, keys: Tensor, rounds: int) -> list[Any]:
        """Return a classifier per task [T]; for a task with one class, that class."""
        from sklearn.ensemble import GradientBoostingClassifier

        models: list[Any] = []
        for task, key in enumerate(keys.tolist()):
            x, y = _to_numpy(support.x[task]), support.y[task].cpu().numpy()
            weight = None if support.weight is None else support.weight[task].double().cpu().numpy()
            if weight is not None:
                x, y, weight = x[weight > 0], y[weight > 0], weight[weight > 0]
            if len(np.unique(y)) < 2:
                models.append(int(y[0]))
                continue
            classifier = GradientBoostingClassifier(
                n_estimators=max(1, rounds),
                learning_rate=self.rate,
                max_depth=self.depth,
                subsample=self.subsample,
                random_state=key & 0x7FFFFFFF,
            )
            models.append(classifier.fit(x, y, weight))
        return models


def _to_numpy(x: Tensor) -> Any:
    """Convert [B, *X] to a float64 numpy array [B, F]."""
    return x.detach().flatten(1).double().cpu().numpy()


def _predict(
    models: list[Any], query_x: Tensor, step_indices: tuple[int, ...], spec: EpisodeSpec
) -> Tensor:
    """Return log p [T, P, M, N] after each number of rounds."""
    log_p = torch.full((len(models), len(step_indices), query_x.shape[1], spec.ways), LEAST)
    for task, model in enumerate(models):
        if isinstance(model, int):
            log_p[task, :, :, model] = 0.0
            continue
        x = _to_numpy(query_x[task])
        if not len(x):
            continue
        stages = [model.init_.predict_proba(x), *model.staged_predict_proba(x)]
        p = np.stack([stages[step] for step in step_indices])
        stage_log_p = np.log(np.maximum(p, 1e-13))
        classes = torch.from_numpy(model.classes_)
        log_p[task][..., classes] = torch.from_numpy(stage_log_p).to(log_p.dtype)
    return log_p.to(query_x.device, spec.dtype)  # x may be integers
