"""Training and comparing from Python, with data and networks of one's own."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import metalearn as ml
from metalearn.compare.python import PUBLISHED
from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.results.shown import Rows

QUICK: dict[str, Any] = {
    "meta_steps": 4,
    "tasks_per_step": 2,
    "episodes": 6,
    "steps": (0, 1, 3),
    "executor": "vmap",
    "run": {"threads": 1, "validate": {"every": 2, "episodes": 4}},
}


pytestmark = pytest.mark.usefixtures("tables")


def data(seed: int = 0) -> Any:
    """20 classes of 8 rows of 5 numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(160, 5)) + np.repeat(rng.normal(size=(20, 5)), 8, 0)
    return ml.tasks.Arrays(x, np.repeat(np.arange(20), 8), ways=3, shots=2, queries=3)


class Net(nn.Module):
    """A network of somebody, with a head for other classes than the tasks'."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__()
        self.body, self.norm, self.fc = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.body(x)).relu())
        return out


def pretrained(seed: int = 3) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


METHODS: dict[str, Any] = {
    "ProtoNet": ml.algorithms.ProtoNet(),
    "fine-tune": ml.transfer.FineTune(inner_lr=0.1),
    "MAML": ml.algorithms.MAML(inner_lr=0.1),
    "nearest centroid": ml.transfer.NearestCentroid(),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("compared") / "out"
    return ml.compare(METHODS, task=data(), model=pretrained(), out=out, targets=[0.99], **QUICK)


def test_a_comparison_of_ones_own_has_tables_and_figures(compared: Any) -> None:
    table = compared.table().splitlines()
    assert len(table) == 5 and table[0].startswith("method")
    assert [line.split("  ")[0] for line in table[1:]] == list(METHODS)
    assert "verdict" in compared.break_even() or "no target" in compared.break_even()
    assert compared.plot("steps").axes and compared.report.is_file()
    assert "<table>" in compared._repr_html_() and str(compared.folder) in repr(compared)
    assert str(compared.report) in compared._repr_html_()
    for text in (compared.table(), compared.break_even(), compared.decision_map()):
        assert repr(text) == text  # a notebook shows lines
        assert text._repr_html_().startswith("<pre>") and "<b>" not in text._repr_html_()
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        compared.plot("step")
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install pandas"):
            compared.to_pandas()


def test_figures_are_drawn_on_axes_that_are_given(compared: Any) -> None:
    figure = Figure()
    ax = figure.subplots(1, 2)[1]
    assert compared.plot("steps", ax=ax) is ax and len(ax.lines) >= len(METHODS)
    assert {text.get_text() for text in ax.get_legend().get_texts()} == set(METHODS)
    assert compared.plot("steps")._repr_svg_().startswith("<?xml")
    with pytest.raises(ConfigError, match="several panels"):
        compared.plot("training", ax=ax)


def test_trained_rows_answer_new_examples(compared: Any) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 5)), ["cat", "dog", "emu"] * 2
    for label in METHODS:
        run = compared.load(label)
        task = run.adapt(x, y)
        assert set(task.predict(x)) <= set(y)
        assert repr(task).startswith("AdaptedTask(6 examples, 3 classes, ")
        assert "tensor" not in repr(run) and " on new tasks; " in repr(run)
    assert type(compared.load("MAML").adapt(x, y).module()) is Net
    with pytest.raises(ConfigError, match="no finished method has this label"):
        compared.load("maml")
    with pytest.raises(ConfigError, match="no run of seed 7"):
        compared.load("MAML", 7)


def test_the_body_keeps_its_weights_and_the_head_is_new(compared: Any) -> None:
    method = METHODS["MAML"].build(ml.models.Module(pretrained()).build(spec()), spec())
    start = method.init(ml.fold_in(0, "init")).meta
    assert torch.equal(start["body.weight"], pretrained().body.weight)
    assert start["head.weight"].shape == (3, 8)


def spec() -> Any:
    return data().build().spec


def test_what_is_finished_is_left_alone_and_the_rest_goes_on(compared: Any, tmp_path: Path) -> None:
    out = compared.folder
    files = {label: out / "methods" / label / "seed-0" / "result.json" for label in METHODS}
    before = {label: file.stat().st_mtime_ns for label, file in files.items()}
    value = json.loads(files["MAML"].read_text())["headline"]["value"]
    files["MAML"].unlink()
    again = ml.compare(METHODS, task=data(), model=pretrained(), out=out, targets=[0.99], **QUICK)
    after = {label: file.stat().st_mtime_ns for label, file in files.items()}
    assert {label for label in after if after[label] != before[label]} == {"MAML"}
    assert json.loads(files["MAML"].read_text())["headline"]["value"] == value
    assert again.table().count("\n") == 4
    with pytest.raises(ConfigError, match="another config"):
        ml.compare(METHODS, task=data(1), model=pretrained(), out=out, **QUICK)


def test_networks_and_data_given_in_python_are_asked_for_again(tmp_path: Path) -> None:
    """As by a process that has neither."""
    run = ml.train(METHODS["MAML"], task=data(), model=pretrained(4), out=tmp_path / "run", **QUICK)
    assert run.source.spec.ways == 3
    del run
    gc.collect()
    with pytest.raises(ConfigError, match=r"Net, passed from Python .*pass the same one again"):
        ml.load_run(tmp_path / "run", model=nn.Linear(5, 2))
    kept = data()
    again = ml.load_run(tmp_path / "run", model=pretrained(4))
    assert again.adapt(np.zeros((3, 5)), [0, 1, 2]).predict(np.ones((2, 5))).shape == (2,)
    assert kept.ways == 3
    other = pretrained()
    with torch.no_grad():
        other.fc.bias += 1
    assert ml.models.Module(other).sha256 != ml.models.Module(pretrained()).sha256


class Signs(ml.algorithms.MAML):
    """MAML by the sign of the gradient."""

    name: Literal["signs"] = option("signs", "The method.")  # type: ignore[assignment]

    def inner_rule(self, spec: Any) -> Any:
        def update(grads: Any, state: Any, params: Any, loss: Any) -> Any:
            return {k: -self.inner_lr * g.sign() for k, g in grads.items()}, state

        return ml.UpdateRule(lambda params: {}, update)


class Frame(list[Any]):
    """The part of a pandas DataFrame that is used, where pandas is not installed."""

    def set_index(self, names: Any) -> Frame:
        return self


def test_train_takes_a_method_of_ones_own_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**QUICK, "seeds": (0, 1)}
    given = {"task": ml.tasks.Sinusoid(shots=4), "model": ml.models.MLP(sizes=(8,))}
    runs = ml.train(Signs(inner_lr=0.01), out=tmp_path / "signs", **given, **options)
    assert [run.config.run.seeds for run in runs] == [(0,), (1,)]
    assert type(runs[0].config.method) is Signs
    assert repr(runs) == str(runs.table()) and "<table>" in runs._repr_html_()
    one = ml.train(ml.algorithms.MAML, out=tmp_path / "maml", **given, **QUICK)
    stamp = (tmp_path / "maml" / "result.json").stat().st_mtime_ns
    ml.train(ml.algorithms.MAML, out=tmp_path / "maml", **given, **QUICK)
    assert (tmp_path / "maml" / "result.json").stat().st_mtime_ns == stamp
    result, path = ml.evaluate_run(one.folder, ["evaluate.episodes=3"])
    assert result["episodes"]["count"] == 3 and path.name == "1.json"
    assert ml.report([one.folder], tmp_path / "page.html").is_file()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    for shown, rows in (
        (one, 3),
        (ml.evaluate_run(one.folder, ["evaluate.episodes=3"]), 3),
        (runs, 6),
    ):
        assert len(shown.table().splitlines()) == rows + 1 and shown.plot("steps").axes
        assert [row["step"] for row in shown.to_pandas()] == [0, 1, 3] * (rows // 3)
        assert str(one.folder) in repr(shown) or shown is runs
    assert "<table>" in one._repr_html_() and one.plot("flops").axes
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        one.plot("step")
    with pytest.raises(ConfigError, match="another config"):
        ml.train(ml.algorithms.MAML, out=tmp_path / "maml", loss="huber", **given, **QUICK)


def test_an_interrupted_run_is_resumed_by_its_own_function(tmp_path: Path) -> None:
    given = {"task": data(), "model": pretrained(), "out": tmp_path / "run", **QUICK}
    first = ml.train(METHODS["MAML"], **given)
    (tmp_path / "run" / "result.json").unlink()  # as if the process had been killed before its test
    with pytest.raises(ConfigError, match=r"unfinished run: continue it with metalearn\.resume"):
        ml.train(METHODS["MAML"], **given)
    again = ml.resume(tmp_path / "run", task=given["task"], model=given["model"])
    assert torch.equal(again.state.meta["head.weight"], first.state.meta["head.weight"])
    assert (tmp_path / "run" / "result.json").is_file()
    assert ml.resume(tmp_path / "run").state.step == again.state.step  # a finished one is loaded
    with pytest.raises(ConfigError, match="is not a run directory"):
        ml.resume(tmp_path)


def test_task_sources_of_ones_own_are_compared(tmp_path: Path) -> None:
    def sources(split: str) -> Any:
        return ml.tasks.Sinusoid(shots=4, queries=4).build(split=split)

    found = ml.compare(
        {"maml": ml.algorithms.MAML(), "scratch": ml.transfer.Scratch()},
        task=sources,
        model=lambda: nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)),
        loss=lambda predictions, y: (predictions - y).abs(),
        out=tmp_path / "out",
        **QUICK,
    )
    assert found.labels == ["maml", "scratch"]
    run = found.load("maml")
    assert run.config.task.source == "task_sources" and run.source.sample(ml.fold_in(0), 2)
    with pytest.raises(ConfigError, match="no 'test': pass train, valid, test"):
        ml.tasks.Given({"train": sources("train"), "valid": sources("valid")})
    with pytest.raises(ConfigError, match="has dtype float64, but the run needs float32"):
        ml.tasks.Given(ml.tasks.Sinusoid().build(dtype=torch.float64)).build()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e._replace(info={}), "train: info has no key"),
        (lambda e: e._replace(support=e.support._replace(x=e.support.x.double())), "torch.float64"),
        (lambda e: e._replace(query=e.query._replace(y=e.query.y + 1)), "has 0 .. 2"),
        (lambda e: e._replace(query=e.query._replace(x=e.query.x.numpy())), "use tensors"),
        (lambda e: e._replace(query=e.query._replace(x=e.query.x[..., 1:])), r"says \[T, B, 5\]"),
        (lambda e: e._replace(query=e.query._replace(y=e.query.y[:, 1:])), r"query\.y has shape"),
        (lambda e: e._replace(query=e.query._replace(x=e.query.x / 0)), r"query\.x is not finite"),
    ],
)
def test_sources_whose_tasks_are_not_as_they_say_are_refused(change: Any, words: str) -> None:
    source = data().build()
    sample = source.sample
    source.sample = lambda key, tasks, start=0: change(sample(key, tasks, start))
    with pytest.raises(ConfigError, match=words):
        ml.tasks.Given(source)


def test_padding_of_given_sources_may_hold_anything() -> None:
    source = ml.tasks.Sinusoid(shots=4, queries=4).build()
    sample = source.sample

    def padded(key: Any, tasks: int, start: int = 0) -> Any:
        episode = sample(key, tasks, start)
        x = episode.support.x.clone()
        x[:, -1] = torch.nan
        weight = torch.ones(x.shape[:2])
        weight[:, -1] = last
        return episode._replace(support=episode.support._replace(x=x, weight=weight))

    source.sample = padded  # type: ignore[method-assign]
    last = 0.0
    assert ml.tasks.Given(source).sha256
    last = 1.0
    with pytest.raises(ConfigError, match=r"support\.x is not finite"):
        ml.tasks.Given(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "photos"}, "'photos' is not a TaskComponent"),
        ({"model": 3}, "int is not a model"),
        ({"loss": 3}, "must be a name or a function"),
        ({"metasteps": 3}, "metasteps: unknown option; did you mean 'meta_steps'"),
        ({"steps": (3, 1)}, "ascending"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    changes: Any, words: str, tmp_path: Path
) -> None:
    options = {"task": ml.tasks.Sinusoid(), **QUICK, **changes}
    with pytest.raises(ConfigError, match=words):
        ml.compare({"maml": ml.algorithms.MAML()}, out=tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="is not a MethodComponent"):
        ml.compare({"maml": "maml"}, task=ml.tasks.Sinusoid(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_experiment_in_python_and_its_file_are_one(tmp_path: Path) -> None:
    """The file trains to the same hash; what exists in Python alone is named in its first line."""
    given = {"task": ml.tasks.Sinusoid(shots=4), "model": ml.models.MLP(sizes=(8,)), **QUICK}
    made = ml.experiment(ml.algorithms.MAML(inner_lr=0.02), **given)
    made.to_yaml(tmp_path / "mine.yaml")
    assert ml.experiment(tmp_path / "mine.yaml").hash() == made.hash()
    run = ml.train(tmp_path / "mine.yaml", out=tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["config_hash"] == made.hash() == ml.load_run(run.folder).config.hash()
    other = ml.experiment(tmp_path / "mine.yaml", overrides=["method.inner_lr=0.5"])
    assert other.method.inner_lr == 0.5 and other.hash() != made.hash()
    here = ml.experiment(Signs(), **{**given, "task": data(), "model": pretrained(), "loss": len})
    first = here.to_yaml().splitlines()[0]
    assert first == "# Needs what was given in Python: task, model, method, loss."
    with pytest.raises(ConfigError, match="change them with overrides"):
        ml.train(tmp_path / "mine.yaml", meta_steps=3)
    with pytest.raises(ConfigError, match=r"use ml\.compare"):
        ml.train({"methods": [{"name": "maml"}]})
    with pytest.raises(ConfigError, match="task: is missing"):
        ml.train(ml.algorithms.MAML())


def test_a_sweep_in_python_has_its_trials(tmp_path: Path) -> None:
    program = ml.experiment(
        ml.algorithms.MAML(),
        task=ml.tasks.Sinusoid(shots=4),
        model=ml.models.MLP(sizes=(8,)),
        **QUICK,
    ).resolved()
    rates = {"method.inner_lr": {"values": [0.01, 0.1]}}
    sweep = {"program": program, "method": "grid", "parameters": rates}
    found = ml.sweep(sweep, out=tmp_path / "sweep")
    assert len(found.trials) == 2 and found.best in found.trials and found.report.is_file()
    assert found.table().splitlines()[1].split()[0] == str(found.best["number"])
    assert found.load().config.method.inner_lr == found.best["parameters"]["method.inner_lr"]
    assert found.plot("history").axes and "<td>complete</td>" in found._repr_html_()
    ax = Figure().subplots(1, 2)[1]
    assert found.plot("history", ax=ax) is ax and ax.get_ylabel() == found.data["metric"]["name"]
    stamp = (tmp_path / "sweep" / "trials" / "0" / "result.json").stat().st_mtime_ns
    ml.sweep(sweep, out=tmp_path / "sweep")
    assert (tmp_path / "sweep" / "trials" / "0" / "result.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="contains a sweep that differs in method"):
        ml.sweep({**sweep, "method": "random", "run_cap": 1}, out=tmp_path / "sweep")
    ml.sweep(sweep, out=tmp_path / "sweep")  # its file is as it was


@pytest.mark.parametrize("place", ["seed-0", "methods/maml/seed-0"])
def test_a_directory_of_several_runs_names_one_of_them(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "config.yaml").touch()
    with pytest.raises(ConfigError, match=f"choose one of its runs, such as .*{place}$"):
        ml.load_run(tmp_path)


def test_a_sweep_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        ml.sweep({"nonsense": 1}, out=tmp_path / "none" / "sweep")
    places = [place for place, _ in error.value.problems]
    assert places == ["nonsense", "method", "parameters", "program"]
    assert not list(tmp_path.iterdir())


def test_one_folder_stands_for_a_list_of_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: is not a directory"):
        ml.report(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="names: must be strings"):
        ml.reproduce(["maml_sinusoid"])  # type: ignore[arg-type]


def test_reproduce_in_python_refuses_what_has_no_published_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no published result"):
        ml.reproduce("demo", out=tmp_path)


def test_a_record_of_reproductions_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"experiment": "maml_sinusoid", "step": 1, "published": 0.67, "value": None}
    rows = Rows([row], PUBLISHED)
    assert rows == [row] and rows.table().splitlines()[1].split()[:2] == ["maml_sinusoid", "–"]
    assert "<td>0.67</td>" in rows._repr_html_()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    assert rows.to_pandas() == [row]
