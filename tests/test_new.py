"""`metalearn new`: what it writes passes at once, and trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import Commands, refused, sinusoid, write

from metalearn.cli.new import KINDS, camel_case, snake_case, write_new
from metalearn.config.plugins import ALL_KINDS
from metalearn.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "module", "cls"),
    [
        ("Mine", "mine", "Mine"),
        ("SignMAML", "sign_maml", "SignMAML"),
        ("sign-maml", "sign_maml", "SignMaml"),
        ("MAML2Steps", "maml2_steps", "MAML2Steps"),
    ],
)
def test_names_of_files_and_classes(name: str, module: str, cls: str) -> None:
    assert (snake_case(name), camel_case(name)) == (module, cls)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("methd", "Mine", "did you mean 'method'"),
        ("method", "MAML", "maml is the name of a method that exists"),
        ("estimator", "TBPTT", "tbptt is the name of an estimator that exists"),
        ("loss", "huber", "huber is the name of a loss that exists"),
        ("model", "3 layers", "is not a valid name"),
        ("task", "json", "would shadow the module json"),
    ],
)
def test_names_that_cannot_be_used_are_refused(
    kind: str, name: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        write_new(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_new("methd", "3 layers", tmp_path)
    assert [place for place, _ in error.value.problems] == ["KIND", "3 layers"]


def test_there_is_one_for_every_kind_of_plugin() -> None:
    assert sorted(KINDS.values()) == sorted(ALL_KINDS)


def test_everything_it_writes_passes_its_test_and_ruff(metalearn: Commands) -> None:
    """One file and one test of each kind, all in one folder; a second time nothing is touched."""
    folder = metalearn.folder / "fresh"
    for kind in KINDS:
        write_new(kind, f"My{kind.title()}", folder)
    refused(metalearn("new", "task", "MyTask", "--out", folder), "already exists")
    ruff = ["--isolated", "--line-length", "100", folder]
    for command in (["check", "--select", "E,F,B", *ruff], ["format", "--check", *ruff]):
        words = [sys.executable, "-m", "ruff", *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    ended = metalearn(before=f"import pytest; raise SystemExit(pytest.main({options}))")
    assert ended.code == 0 and f"{len(KINDS) + 2} passed" in ended.out, ended.out + ended.err


def test_a_section_is_a_kind_too(metalearn: Commands) -> None:
    done = metalearn("new", "section", "HowMany", "--out", "sections")
    assert done.code == 0 and "metalearn list report --plugin" in done.out, done.err
    assert "@ml.section(" in (metalearn.folder / "sections" / "how_many.py").read_text()


def test_a_new_method_trains_on_a_new_task(metalearn: Commands) -> None:
    for kind, name in (("method", "Fresh"), ("task", "Straight"), ("model", "Wide")):
        assert metalearn("new", kind, name).code == 0
    data = sinusoid(method={"name": "fresh"}, model={"name": "wide", "width": 4})
    data["method"].pop("inner_lr"), data["model"].pop("sizes")
    data["task"] = {"source": "straight"}
    file = write(metalearn.folder, "own", data)
    plugins = [
        word for name in ("fresh", "straight", "wide") for word in ("--plugin", f"{name}.py")
    ]
    done = metalearn("train", file, "--out", "own", *plugins)
    assert done.code == 0, done.err
    refused(metalearn("evaluate", "own"), "--plugin fresh.py", "unknown task 'straight'")
