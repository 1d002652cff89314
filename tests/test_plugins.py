"""Components of one's own: registered, loaded from files and modules, and from entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from commandline import Commands, commands_in, refused, sinusoid, write

import metalearn as ml
from metalearn.algorithms import MAML
from metalearn.cli.commands import catalogue
from metalearn.component import RuleComponent, option
from metalearn.config import plugins
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.config.overrides import apply_overrides
from metalearn.config.registry import METHODS, TABLES
from metalearn.errors import ConfigError
from metalearn.inner.rules import sgd
from metalearn.learned_optimizers import ES, Constant, LearnedSGD
from metalearn.losses import criterion
from metalearn.models import MLP
from metalearn.nas import MLPReg
from metalearn.tracking.sink import SinkOptions

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = """
from typing import Literal

import metalearn as ml


class Mine(ml.models.MLP):
    \"\"\"A network of my own.\"\"\"

    name: Literal["mine"] = ml.option("mine", "The model.")
"""


pytestmark = pytest.mark.usefixtures("tables")


class Mine(MLP):
    """A network."""

    name: Literal["mine"] = option("mine", "The model.")  # type: ignore[assignment]


class MyMAML(MAML):
    """A method."""

    name: Literal["my_maml"] = option("my_maml", "The method.")  # type: ignore[assignment]


def test_what_is_registered_is_known_by_its_name() -> None:
    assert plugins.register("models", Mine) is Mine
    plugins.register("methods", MyMAML)
    data = {
        "task": {"source": "sinusoid"},
        "model": {"name": "mine"},
        "method": {"name": "my_maml"},
    }
    experiment = parse(data).experiments[0]
    assert type(experiment.model) is Mine and type(experiment.method) is MyMAML
    assert METHODS["my_maml"] is MyMAML
    plugins.register("models", Mine)  # again, as a cell of a notebook


@pytest.mark.parametrize(
    ("kind", "component", "words"),
    [
        ("model", Mine, "did you mean 'models'"),
        ("models", MyMAML, "is not a subclass of metalearn.component.ModelComponent"),
        ("methods", MyMAML(), "is not a subclass"),
        (
            "models",
            type("Other", (MLP,), {"__module__": "elsewhere"}),
            "choose another one for Other",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused(kind: str, component: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plugins.register(kind, component)


def test_entry_points_are_registered_and_broken_ones_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = EntryPoints(
        [
            EntryPoint("mine", f"{__name__}:Mine", "metalearn.models"),
            EntryPoint("broken", "no.such.module:Net", "metalearn.models"),
        ]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda: found)
    plugins.load_entry_points.cache_clear()
    plugins.load_entry_points()
    assert TABLES["models"]["mine"] is Mine
    assert "no.such.module:Net of the group metalearn.models is skipped" in caplog.text
    plugins.load_entry_points.cache_clear()


class Half(RuleComponent):
    """Half of the gradient."""

    name: Literal["half"] = option("half", "The rule.")
    on: str = option("all", "A text.")

    def build(self, steps: int | None = None) -> Any:
        return sgd(0.5)


class Lines(SinkOptions):
    """Rows as lines of a file."""

    name: Literal["lines"] = option("lines", "The tracker.")
    file: str = option("", "Its name; empty: off.")

    def build(self, watched: Any) -> Any:
        return LinesSink(watched.folder / self.file) if self.file else None


class LinesSink:
    """The opened file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, rows: Any) -> None:
        self.path.write_text(f"{self.path.exists()} {len(rows)}")

    def result(self, result: Any) -> None:
        self.path.write_text(result["method"])

    def page(self, folder: Path, page: Path) -> None: ...

    def close(self) -> None: ...


def with_rule(**more: Any) -> Any:
    """An experiment with the rule `half`."""
    return parse(
        {
            "task": {"source": "sinusoid"},
            "method": {"name": "maml", "outer": {"name": "half", **more}},
            "run": {"track": {"lines": {"file": "a.txt"}}},
        }
    ).experiments[0]


def test_rules_and_trackers_of_ones_own_are_known_in_files() -> None:
    with pytest.raises(ConfigError, match=r"unknown rule 'half'.*(?s:.*)lines: unknown key"):
        with_rule()
    plugins.register("rules", Half)
    plugins.register("trackers", Lines)
    found = with_rule(on="x")
    assert found.method.outer == Half(on="x") and found.run.track.lines.file == "a.txt"
    again = parse(found.resolved()).experiments[0]  # as config.yaml holds it
    assert again.hash() == found.hash() and again.method == found.method
    with pytest.raises(ConfigError, match=r"method\.outer\.onn: unknown key; did you mean 'on'"):
        with_rule(onn="x")
    data, _ = apply_overrides(found.resolved(), ["method.outer.on=12:30"])
    assert data["method"]["outer"]["on"] == "12:30"  # a text field, no YAML


def test_a_tracker_of_ones_own_gets_the_result(tmp_path: Path) -> None:
    plugins.register("trackers", Lines)
    small = {"meta_steps": 2, "episodes": 4, "steps": (0, 1), "executor": "vmap"}
    run = ml.train(
        MAML(),
        task=ml.tasks.Sinusoid(shots=4),
        model=MLP(sizes=(4,)),
        out=tmp_path / "run",
        run={"track": {"lines": {"file": "a.txt"}}},
        **small,
    )
    assert (run.folder / "a.txt").read_text() == "maml"
    page = tmp_path / "page.html"

    @ml.section("How many rows are there?", template="<p>Rows: {{ count }}.</p>")
    def rows(rows: Any, pages: Any) -> Any:
        return {"count": len(rows.groups)}

    @ml.section("Does it fail?", template="{{ nothing }}")
    def fails(rows: Any, pages: Any) -> Any:
        return {}

    @ml.section("What is listed?")
    def listed(rows: Any, pages: Any) -> Any:
        return {"rows & pages": [len(rows.groups), len(pages)]}

    text = ml.report([run.folder], page).read_text()
    assert "<dt>rows &amp; pages</dt><dd>[1, 1]</dd>" in text
    assert "How many rows are there?" in text and "<p>Rows: 1.</p>" in text
    assert "<code>fails</code> failed: " in text
    assert rows.name in [row["name"] for row in catalogue("report")["report"]]


def test_a_file_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package")
    with pytest.raises(ConfigError, match=r"bad\.py cannot be imported: ModuleNotFoundError"):
        plugins.load_plugins(["bad.py"], tmp_path)
    with pytest.raises(ConfigError, match=r"no file none\.py in "):
        plugins.load_plugins(["none.py"], tmp_path)
    with pytest.raises(ConfigError) as both:
        plugins.load_plugins(["none.py", "bad.py"], tmp_path)
    assert len(both.value.problems) == 2
    with pytest.raises(ConfigError, match="no_such_package cannot be imported"):
        plugins.load_plugins(["no_such_package"])


class Wide(MLPReg):
    """A space."""

    name: Literal["wide"] = option("wide", "The space.")  # type: ignore[assignment]


class HalfRule(LearnedSGD):
    """A learned rule."""

    name: Literal["half_rule"] = option("half_rule", "The rule.")  # type: ignore[assignment]


class Wild(ES):
    """An estimator."""

    name: Literal["wild"] = option("wild", "The estimator.")  # type: ignore[assignment]


class Steady(Constant):
    """A schedule of lengths."""

    name: Literal["steady"] = option("steady", "The schedule.")  # type: ignore[assignment]


def absolute(predictions: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Absolute error."""
    return (predictions - y).abs()


OWN = {"spaces": Wide, "learned_rules": HalfRule, "estimators": Wild, "horizons": Steady}
LEARNS_OPTIMIZER = {
    "task": {"source": "sinusoid"},
    "model": {"name": "mlp", "sizes": [4]},
    "loss": "absolute",
    "method": {
        "name": "learn_optimizer",
        "rule": {"name": "half_rule"},
        "estimator": {"name": "wild", "sigma": 0.02},
        "horizon": {"name": "steady", "steps": 20},
    },
}
SEARCHES = {
    "task": {"source": "sinusoid"},
    "method": {"name": "per_task_nas", "space": {"name": "wide"}},
}


def test_every_table_takes_components_of_ones_own() -> None:
    with pytest.raises(ConfigError) as unknown:
        parse(LEARNS_OPTIMIZER)
    text = str(unknown.value)
    for kind in ("learned rule 'half_rule'", "estimator 'wild'", "horizon 'steady'"):
        assert f"unknown {kind}" in text
    assert "loss: unknown loss 'absolute'" in text
    for table, component in OWN.items():
        plugins.register(table, component)
    plugins.register("losses", absolute)
    found = parse(LEARNS_OPTIMIZER).experiments[0]
    assert found.method.rule == HalfRule() and found.method.estimator == Wild(sigma=0.02)
    assert found.method.horizon == Steady(steps=20) and found.loss == "absolute"
    assert parse(SEARCHES).experiments[0].method.space == Wide()
    again = parse(found.resolved()).experiments[0]  # as config.yaml holds it
    assert again.hash() == found.hash() and again.method == found.method
    listed = catalogue(None)
    for table, component in OWN.items():
        rows = {row["name"]: row["sentence"] for row in listed[table]}
        assert rows[component().name] == component.sentence()
    assert {"name": "absolute", "sentence": "Absolute error."} in listed["losses"]
    near = {**SEARCHES["method"], "space": {"name": "wid"}}
    with pytest.raises(ConfigError, match="unknown space 'wid'; did you mean 'wide'"):
        parse({**SEARCHES, "method": near})
    parts = build(found)
    assert float(criterion(parts.train.spec)(torch.ones(2, 1), torch.zeros(2, 1))) == 1


def test_python_registers_components_inside_others() -> None:
    method = ml.nas.PerTaskNAS(space=Wide())
    made = ml.experiment(method, task=ml.tasks.Sinusoid(), meta_steps=1)
    assert made.method.space == Wide() and TABLES["spaces"]["wide"] is Wide


def test_the_name_of_a_section_or_loss_is_given_once() -> None:
    with pytest.raises(ConfigError, match=r"'mse' is the name of metalearn\.losses"):
        plugins.register("losses", type(absolute)(absolute.__code__, {}, "mse"))
    ml.section("Which?", template="")(lambda rows, pages: {})

    def other(rows: Any, pages: Any) -> Any:
        return {}

    with pytest.raises(ConfigError, match=r"'Which\?' is the question of .*lambda"):
        ml.section("Which?", template="")(other)


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("plugins")) as commands:
        yield commands


def test_the_command_line_takes_a_model_from_a_file(metalearn: Commands) -> None:
    """Trained with it, tested and listed with it; without it a run says what it needs."""
    (metalearn.folder / "mine.py").write_text(PLUGIN)
    data = {**sinusoid(), "model": {"name": "mine", "sizes": [4]}}
    file = write(metalearn.folder, "own", data)
    plugin = ("--plugin", str(metalearn.folder / "mine.py"))
    assert "unknown model 'mine'" in metalearn("train", file, "--out", "x").err
    done = metalearn("train", file, "--out", "own", *plugin)
    assert done.code == 0, done.err
    assert metalearn("evaluate", "own", "evaluate.episodes=2", *plugin).code == 0
    without = metalearn("evaluate", "own", "evaluate.episodes=2")
    assert without.code == 2 and f"--plugin {plugin[1]}" in without.err
    assert "A network of my own." in metalearn("list", "models", *plugin).out
    named = write(metalearn.folder, "named", {**data, "plugins": ["./mine.py"]})
    assert metalearn("train", named, "--out", "named").code == 0  # beside the file
    refused = metalearn("evaluate", "named", "evaluate.episodes=2")
    assert refused.code == 2 and "--plugin ./mine.py" in refused.err


LOSS = """
import metalearn as ml


def absolute(predictions, y):
    return (predictions - y).abs()


ml.register("losses", absolute)
"""


def test_workers_of_a_sweep_know_the_plugins_of_its_experiment(metalearn: Commands) -> None:
    """A file beside the experiment, in another folder than the command's; its runs name it."""
    home = metalearn.folder / "elsewhere"
    home.mkdir()
    (home / "own_loss.py").write_text(LOSS)
    small = {"meta_steps": 2, "validate": {"every": 1, "episodes": 4}}
    write(home, "losses", {**sinusoid(run=small), "loss": "absolute", "plugins": ["./own_loss.py"]})
    rates = {"method.inner_lr": {"values": [0.01, 0.02]}}
    metric = {"name": "valid/loss", "goal": "minimize"}
    data = {"program": "losses.yaml", "method": "grid", "metric": metric, "parameters": rates}
    words = (write(home, "two", data), "--workers", "2", "--out", "two")
    done = metalearn("sweep", *words, env={"PYTHONPATH": str(ROOT)})
    assert done.code == 0 and "2 complete" in done.out, done.err
    without = metalearn("evaluate", "two/trials/0", "evaluate.episodes=2")
    refused(without, "unknown loss 'absolute'", "--plugin ./own_loss.py")
