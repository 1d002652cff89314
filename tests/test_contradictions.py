"""A trained network is tested on inputs and targets of the form that it was trained on, or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import metalearn as ml
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.run.trained.adapted import inputs
from metalearn.tasks import Arrays, Icons, ImageFolder, Mixture, Spectra, Tides
from metalearn.tasks.prepared.published_folders import MiniImageNet

QUICK: dict[str, Any] = {"meta_steps": 1, "episodes": 2, "steps": (0, 1), "executor": "vmap"}


def write_rows(path: Path, order: str = "a b y z shop", shift: float = 0.0) -> Path:
    """12 shops with 6 rows each of inputs a and b and targets y and z."""
    numbers = np.random.default_rng(0).normal(shift, 1, (72, 4)).round(3)
    rows = [dict(zip("abyz", row)) | {"shop": n // 6} for n, row in enumerate(numbers.tolist())]
    names = order.split()
    lines = [",".join(str(row[name]) for name in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contradictions")
    task = Arrays(
        write_rows(folder / "rows.csv"),
        inputs=("a", "b"),
        group="shop",
        shots=3,
        queries=2,
        standardise=True,
    )
    model = ml.models.MLP(sizes=(4,))
    ml.train(ml.algorithms.MAML(), task=task, model=model, out=folder / "run", **QUICK)
    return folder / "run"


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("task.inputs=[b, a]", r'inputs: is \["b", "a"\], and in training \["a", "b"\]'),
        ("task.inputs=[a, z]", r'inputs: is \["a", "z"\]'),
        ("task.target=z", 'target: is "z", and in training "y"'),
        ("task.standardise=false", "standardise: is false, and in training true"),
        ("task.standardise_targets=true", "standardise_targets: is true, and in training false"),
        ("task.moments=[[0, 0], [1, 1]]", r"moments: is \[\[0.0, 0.0\], .* in training \[\[-?0.\d"),
        ("evaluate.task.inputs=[b, a]", "inputs"),
    ],
)
def test_evaluate_refuses_what_contradicts_training(run: Path, override: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluate.task.{why}"):
        ml.evaluate_run(run, [override])
    assert not (run / "evaluations").exists()


def test_evaluate_takes_other_rows_of_the_same_form(run: Path) -> None:
    other = write_rows(run.parent / "other.csv", "shop z b y a", shift=5.0)
    for changes in ([], [f"task.path={other}"], ["task.shots=2", "task.queries=1"]):
        found, _ = ml.evaluate_run(run, changes, run.parent / "found")
        assert found["test"]["steps"] == [0, 1]
    data = ml.load_run(run).config.resolved()
    data["evaluate"]["task"]["path"] = str(other)
    x = parse(data).experiments[0].test_task.build("test").examples(ml.fold_in(0), 30).x
    assert float(x.mean()) > 3  # standardised by the moments of training, not by its own


class Frame:
    """A DataFrame, as far as it is used."""

    def __init__(self, x: Any, columns: list[Any]) -> None:
        self.x, self.columns = np.asarray(x), columns

    def __len__(self) -> int:
        return len(self.x)

    def __array__(self, *args: Any, **named: Any) -> Any:
        return self.x.astype(*args) if args else self.x


def test_columns_of_a_new_task_are_those_of_training(run: Path) -> None:
    loaded = ml.load_run(run)
    x, y = np.random.default_rng(1).normal(size=(4, 2)), np.arange(4.0)
    why = r"columns b, a, but the run was trained on a, b: use x\[\['a', 'b'\]\]"
    with pytest.raises(ConfigError, match=why):
        loaded.adapt(Frame(x, ["b", "a"]), y)
    task = loaded.adapt(Frame(x, ["a", "b"]), y)
    with pytest.raises(ConfigError, match=why):
        task.predict(Frame(x, ["b", "a"]))
    expected = loaded.adapt(x, y).predict(x)
    for columns in (["a", "b"], [0, 1]):  # numbers are no names
        np.testing.assert_array_equal(task.predict(Frame(x, columns)), expected)


def test_data_that_changed_since_training_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "rows.csv")
    task = Arrays(rows, inputs=("a", "b"), group="shop", shots=3, queries=2)
    made = {"task": task, "model": ml.models.MLP(sizes=(4,)), "out": tmp_path / "run", **QUICK}
    ml.train(ml.algorithms.MAML(), **made)
    ml.evaluate_run(tmp_path / "run")
    assert "SHA-256" not in caplog.text
    write_rows(rows, shift=1.0)
    ml.evaluate_run(tmp_path / "run")
    assert "task: the run was made with data of SHA-256" in caplog.text
    (tmp_path / "run" / "result.json").unlink()  # as of an interrupted run
    with pytest.raises(ConfigError, match=r"was started with data of SHA-256 .* restore them"):
        ml.resume(tmp_path / "run")


def test_an_experiment_file_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    task = {"source": "arrays", "path": str(write_rows(tmp_path / "rows.csv")), "group": "shop"}
    task |= {"inputs": ["a", "b"], "shots": 3, "queries": 2}
    data = {"task": task, "model": {"name": "mlp"}, "evaluate": {"task": {"inputs": ["b", "a"]}}}
    with pytest.raises(ConfigError, match=r"evaluate\.task\.inputs: is"):
        build(parse(data).experiments[0], to_train=True)
    build(parse({**data, "evaluate": {"task": {"shots": 2}}}).experiments[0], to_train=True)


def test_rows_of_a_test_file_are_read_by_the_names_of_training(tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "1.csv", "a b y shop"), tmp_path / "2.csv"
    write_rows(two, "b shop y a")
    task = {"source": "arrays", "path": str(one), "group": "shop", "shots": 3, "queries": 2}
    data = {"task": task, "model": {"name": "mlp"}, "evaluate": {"task": {"path": str(two)}}}
    made = parse(data).experiments[0]
    assert dict(made.task)["inputs"] == dict(made.test_task)["inputs"] == ("a", "b")


def test_columns_in_memory_are_known_by_name(tmp_path: Path) -> None:
    """The same columns in another order have the same hash; a stored run names them."""
    rows = {name: np.random.default_rng(0).normal(size=40) for name in "ba"}
    rows |= {"y": rows["a"] + rows["b"], "shop": np.arange(40) // 5}
    task = Arrays(rows, group="shop", shots=2, queries=2)
    assert task.resolve(0).inputs == ("b", "a")
    assert Arrays({"x": np.ones((4, 2)), "y": np.arange(4)}).resolve(0).inputs is None


def test_a_path_that_the_test_would_not_read_is_refused(tmp_path: Path) -> None:
    trained = Arrays("train.csv", test_path="test.csv")
    later = trained.model_copy(update={"path": "new.csv"})
    ((name, text),) = later.contradictions(trained)
    assert name == "path" and "test.csv: change that" in text
    assert not later.model_copy(update={"test_path": "new.csv"}).contradictions(trained)


def test_other_sources_say_what_training_fixes() -> None:
    folder = {"path": "photos", "ways": 5}
    for trained, tested, named in (
        (Tides(scale="unit"), Tides(scale="metres", window="free"), ["scale"]),
        (Tides(), Tides(inputs="harmonics"), ["inputs"]),
        (Spectra(), Spectra(standardise=False, shots=1), ["standardise"]),
        (Icons(), Icons(size=64, designers="unseen"), ["size"]),
        (MiniImageNet(), MiniImageNet(size=32), ["size"]),
        (ImageFolder(**folder), ImageFolder(**folder, size=84, split_seed=3), []),
        (ImageFolder(**folder), ImageFolder(**folder, size=32, invert=True), ["size", "invert"]),
        (ImageFolder(**folder), ImageFolder(path="others", invert=True), []),
        (Tides(), Spectra(), []),
        (
            Mixture([{"source": "icons"}, {"source": "glyphs"}]),
            Mixture([{"source": "glyphs"}, {"source": "icons", "size": 64}], shots=2),
            ["sources.1.size"],
        ),
    ):
        assert [name for name, _ in tested.contradictions(trained)] == named, tested


def test_images_given_as_bytes_in_training_are_in_their_scale_later(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    task = Arrays(pixels, np.arange(60) // 5, ways=2, shots=2, queries=2)
    made: Any = {"task": task, "model": ml.models.MLP(sizes=(4,)), "out": tmp_path / "run"}
    run = ml.train(ml.algorithms.ProtoNet(), **made, **{**QUICK, "steps": (0,)})
    with pytest.raises(ConfigError, match=r"must be images in 0\.\.1, as in training"):
        run.adapt(pixels[:4].astype(float), [0, 0, 1, 1])
    assert len(run.adapt(pixels[:4] / 255, [0, 0, 1, 1]).predict(pixels[:9] / 255)) == 9


def test_names_of_inputs_are_those_of_columns() -> None:
    assert Tides(inputs="time").input_names is None
    assert Arrays("rows.csv", inputs=("a", "b")).input_names == ("a", "b")
    assert Arrays("rows.npz", inputs=("x",)).input_names is None


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4)])
def test_bytes_of_images_are_refused_as_training_divided_them(shape: tuple[int, ...]) -> None:
    spec: Any = SimpleNamespace(x_shape=shape, device="cpu", dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"must be floats in 0\.\.1, ink bright; got bytes"):
        inputs(np.zeros((2, *shape), np.uint8), spec)
    spec.x_shape = (4,)  # numbers of one row, which are as they are
    assert inputs(np.full((2, 4), 7, np.uint8), spec).tolist() == [[7.0] * 4] * 2
