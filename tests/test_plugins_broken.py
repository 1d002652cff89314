"""Plug-ins that cannot be used: every problem at once, and nothing of them stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Commands, files_of, refused, sinusoid, write

from metalearn.config import plugins
from metalearn.config.registry import TABLES
from metalearn.errors import ConfigError

pytestmark = pytest.mark.usefixtures("tables")
PLUGIN = """
from typing import Literal

import metalearn as ml


class Mine(ml.models.MLP):
    \"\"\"A network of my own.\"\"\"

    name: Literal["mine"] = ml.option("mine", "The model.")
"""

BROKEN = {
    "raises.py": "1 / 0",
    "ends.py": "import sys; sys.exit(0)",
    "nothing.py": "ANSWER = 42",
    "wrong.py": """
import metalearn as ml

ml.register("modelz", ml.models.MLP)
ml.register("models", ml.algorithms.MAML)
ml.register("losses", 3)
ml.register("report", "a text")
""",
    "twice.py": """
from typing import Literal

import metalearn as ml


class First(ml.models.MLP):
    name: Literal["same"] = "same"


class Second(ml.models.MLP):
    name: Literal["same"] = "same"


class Third(ml.models.MLP):
    name: Literal["mlp"] = "mlp"
""",
}
PROBLEMS = (
    "raises.py cannot be imported: ZeroDivisionError: division by zero",
    "ends.py cannot be imported: SystemExit: 0",
    "nothing.py neither defines nor registers a component",
    "wrong.py: kind: unknown kind 'modelz'; did you mean 'models'?",
    "wrong.py: models: <class 'metalearn.algorithms.maml.MAML'> is not a subclass of",
    "wrong.py: losses: 3 is not a named function",
    "wrong.py: report: 'a text' is not a section",
    "twice.py: models: 'same' is the name of metalearn_plugin_twice.First: choose another one",
    "twice.py: models: 'mlp' is the name of metalearn.models.mlp.MLP: choose another one",
)


def test_all_problems_of_all_plugins_are_reported_at_once(tmp_path: Path) -> None:
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):  # nothing is remembered
        before = [dict(table) for table in plugins._tables()]
        with pytest.raises(ConfigError) as found:
            plugins.load_plugins(BROKEN, tmp_path)
        lines = [text for _, text in found.value.problems]
        assert len(lines) == len(PROBLEMS)
        assert all(line.startswith(words) for line, words in zip(lines, PROBLEMS, strict=True))
        assert [dict(table) for table in plugins._tables()] == before
    (tmp_path / "twice.py").write_text(PLUGIN)  # repaired
    plugins.load_plugins(["twice.py"], tmp_path)
    assert "mine" in TABLES["models"]


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN)
    plugins.load_plugins(["a/mine.py", "./a/mine.py"], tmp_path)
    with pytest.raises(ConfigError, match=r"b/mine\.py: models: 'mine' is the name of"):
        plugins.load_plugins(["b/mine.py"], tmp_path)


def test_broken_plugins_end_a_command_before_it_writes(metalearn: Commands) -> None:
    """Exit code 2 with every problem, from compare and sweep alike."""
    for name, text in BROKEN.items():
        (metalearn.folder / name).write_text(text)
    given = [word for name in BROKEN for word in ("--plugin", name)]
    methods = {"methods": [{"name": "maml"}], "method": None}
    file = write(metalearn.folder, "rivals", sinusoid(**methods))
    rates = {"method.inner_lr": {"values": [0.1, 0.2]}}
    sweep = write(
        metalearn.folder,
        "rates",
        {"program": "tiny.yaml", "method": "grid", "parameters": rates},
    )
    write(metalearn.folder, "tiny", {**sinusoid(), "plugins": ["wrong.py", "nothing.py"]})
    before = files_of(metalearn.folder)
    refused(metalearn("compare", file, *given), *PROBLEMS)
    refused(metalearn("sweep", sweep, *given), *PROBLEMS)
    refused(metalearn("sweep", sweep), *PROBLEMS[2:7])
    assert files_of(metalearn.folder) == before
