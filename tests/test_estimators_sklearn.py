"""Trained runs behind scikit-learn's interface, by its own checks."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator
from test_adapted import trained

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.models import MLP
from metalearn.run.trained.adapted import adapt_task
from metalearn.transfer import NearestCentroid, Scratch
from metalearn.types import EpisodeSpec, Learner, Method

SINUSOID: dict[str, Any] = {
    "task": {"source": "sinusoid", "shots": 5, "queries": 5},
    "model": {"name": "mlp"},
}


class AnyWidth:
    """A run without a training, which takes inputs of any number of features."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.method = SimpleNamespace(spec=SimpleNamespace(x_shape=(1,)))

    def __deepcopy__(self, memo: Any) -> AnyWidth:
        return AnyWidth(self.kind)

    def adapt(self, x: Any, y: Any, steps: int | None = None, seed: int = 0) -> Any:
        classes = self.kind == "classification"
        width = 1 if classes or np.ndim(y) == 1 else np.shape(y)[1]
        spec = EpisodeSpec(self.kind, 2, 1, 1, x.shape[1:], width, 99, dtype=torch.float64)  # type: ignore[arg-type]
        component = NearestCentroid(normalise=False) if classes else Scratch(inner_lr=0.1)

        def build(spec: EpisodeSpec) -> tuple[Learner, Method]:
            learner = MLP(sizes=(64,), activation="tanh").build(spec)
            return learner, component.build(learner, spec)

        meta = build(spec)[1].init(ml.fold_in(0, "init")).meta
        return adapt_task(build, meta, spec, x, y, steps or 20, seed)


def checks(estimator: Any) -> list[Any]:
    return [
        pytest.param(one, check, id=getattr(check, "func", check).__name__)
        for one, check in estimator_checks_generator(estimator)
    ]


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        *checks(ml.FewShotClassifier(AnyWidth("classification"))),
        *checks(ml.FewShotRegressor(AnyWidth("regression"))),
    ],
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("runs")
    images = trained(home / "images", {"name": "proto_net"})
    values = trained(home / "values", {"name": "maml"}, **SINUSOID)
    return images.folder, values.folder


def test_a_run_is_fitted_to_images_and_to_their_rows(folders: tuple[Path, Path]) -> None:
    run = ml.load_run(folders[0])
    one = run.source.sample(ml.fold_in(6), 1)
    x, q = one.support.x[0].numpy(), one.query.x[0].numpy()
    y = np.array(["ox", "gnu", "yak"])[one.support.y[0].numpy()]
    model = ml.FewShotClassifier(folders[0]).fit(x, y)
    assert list(model.classes_) == ["gnu", "ox", "yak"] and set(model.predict(q)) <= set(y)
    task = run.adapt(x, y)
    np.testing.assert_allclose(model.predict_proba(q), task.predict_proba(q), rtol=1e-6)
    rows = clone(model).fit(x.reshape(len(x), -1), y)
    np.testing.assert_array_equal(rows.predict(q.reshape(len(q), -1)), model.predict(q))
    assert 0 <= model.score(q, np.array(["ox", "gnu", "yak"])[one.query.y[0].numpy()]) <= 1
    with pytest.raises(ConfigError, match="at least 2"):
        model.fit(x, ["ox"] * len(x))
    with pytest.raises(ConfigError, match="run: must be a run directory"):
        ml.FewShotClassifier().fit(x, y)
    with pytest.raises(ConfigError, match="run: must be a run directory"):
        ml.FewShotClassifier(3).fit(x, y)
    with pytest.raises(ConfigError, match="y: contains labels that differ only in spaces"):
        model.fit(np.concatenate([x, x]), [*y, *(f" {name}" for name in y)])


def test_a_run_is_fitted_to_values(folders: tuple[Path, Path]) -> None:
    x = np.linspace(-3, 3, 8)[:, None]
    flat = ml.FewShotRegressor(folders[1], steps=3).fit(x, np.sin(x[:, 0])).predict(x)
    column = ml.FewShotRegressor(folders[1], steps=3).fit(x, np.sin(x)).predict(x)
    assert flat.shape == (8,) and column.shape == (8, 1)
    np.testing.assert_allclose(flat, column[:, 0])
    np.testing.assert_allclose(column, ml.load_run(folders[1]).adapt(x, np.sin(x), 3).predict(x))


def test_a_run_of_the_other_kind_is_refused(folders: tuple[Path, Path]) -> None:
    x = np.zeros((4, 1))
    with pytest.raises(ConfigError, match="for classification: use FewShotClass"):
        ml.FewShotRegressor(folders[0]).fit(x, np.arange(4.0))
    with pytest.raises(ConfigError, match="for regression: use FewShotRegressor"):
        ml.FewShotClassifier(folders[1]).fit(x, ["a", "b", "a", "b"])
