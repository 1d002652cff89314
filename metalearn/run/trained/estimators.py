"""Adapted tasks behind scikit-learn's interface: fit on a few examples, predict others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import ConfigError
from metalearn.run.trained.adapted import AdaptedTask, check_columns, check_distinct_labels
from metalearn.run.trained.load import load_run

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    text = "FewShotClassifier and FewShotRegressor need scikit-learn 1.6 or newer"
    raise ConfigError(("scikit-learn", f"{text}: pip install scikit-learn")) from error


class _FewShot(BaseEstimator):  # type: ignore[misc]
    def __init__(self, run: Any = None, steps: int | None = None, seed: int = 0) -> None:
        self.run = run
        self.steps = steps
        self.seed = seed

    def _fit(self, x: Any, y: Any) -> None:
        if self.run is None:
            raise ConfigError(
                ("run", "must be a run directory, or the result of load_run (got None)")
            )
        self.run_ = load_run(self.run) if isinstance(self.run, (str, Path)) else self.run
        if not hasattr(self.run_, "adapt"):
            type_name = type(self.run).__name__
            text = f"must be a run directory, or the result of load_run (got a {type_name})"
            raise ConfigError(("run", text))
        own_kind = "classification" if isinstance(self, ClassifierMixin) else "regression"
        kind = getattr(self.run_.method.spec, "kind", own_kind)
        if kind != own_kind:
            estimator = "FewShotRegressor" if kind == "regression" else "FewShotClassifier"
            raise ConfigError(("run", f"was trained for {kind}: use {estimator}"))
        task = getattr(getattr(self.run_, "config", None), "test_task", None)
        names = getattr(self, "feature_names_in_", None)
        check_columns(names, getattr(task, "input_names", None))
        self._examples = (x, y)
        self.task_: AdaptedTask = self.run_.adapt(self._reshape(x), y, self.steps, self.seed)

    def __getstate__(self) -> Any:
        """Return the state without functions: a copy or pickle learns its examples again."""
        return {k: v for k, v in super().__getstate__().items() if k not in ("run_", "task_")}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if "_examples" in state:
            self._fit(*state["_examples"])

    def _validate(self, x: Any) -> Any:
        check_is_fitted(self)
        return self._reshape(validate_data(self, x, allow_nd=True, reset=False))

    def _reshape(self, x: Any) -> Any:
        """Reshape rows [B, prod X], as scikit-learn stores images, to [B, *X]."""
        shape = tuple(self.run_.method.spec.x_shape)
        flat = x.ndim == 2 and len(shape) != 1 and x.shape[1] == math.prod(shape)
        return x.reshape(len(x), *shape) if flat else x


class FewShotClassifier(ClassifierMixin, _FewShot):  # type: ignore[misc]
    """A classifier that a trained run adapts to a few labelled examples.

    `run` is a run directory or the result of `load_run`, `steps` the number of steps on the task
    (None: the run's headline step), `seed` that of the method's random numbers. x is [B, *X], or
    flattened to [B, prod X]; y is [B] labels of any kind."""

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Learn the classes of y from the examples X."""
        X, y = validate_data(self, X, y, allow_nd=True)
        check_classification_targets(y)
        self.classes_, class_indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            text = f"y contains one class, {self.classes_[0]!r}: a classifier needs at least 2"
            raise ConfigError(("y", text))
        check_distinct_labels(self.classes_)
        self._fit(X, class_indices)
        return self

    def predict(self, X: Any) -> Any:
        """Return the class of each example: [M]."""
        x = self._validate(X)
        return self.classes_[self.task_.predict(x)]

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each of `classes_`: [M, N]."""
        x = self._validate(X)
        return self.task_.predict_proba(x)


class FewShotRegressor(RegressorMixin, _FewShot):  # type: ignore[misc]
    """A regressor that a trained run adapts to a few examples; options as of FewShotClassifier.

    y is [B] or [B, C] numbers, and predictions have the same shape.

    >>> x, y = torch.rand(4, 1).numpy(), torch.rand(4).numpy()
    >>> ml.FewShotRegressor("runs/example").fit(x, y).predict(x).shape  # the run of `train`
    (4,)
    """

    def fit(self, X: Any, y: Any) -> FewShotRegressor:
        """Learn the values y of the examples X."""
        X, y = validate_data(self, X, y, allow_nd=True, multi_output=True, y_numeric=True)
        self._fit(X, y)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> Any:
        """Return the value of each example: [M] or [M, C], in the shape of y."""
        x = self._validate(X)
        return self.task_.predict(x)
