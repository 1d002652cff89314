"""A comparison whose rows several processes share: each row made once, in an order that gives it what it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Commands, Running, commands_in, sinusoid, write

from metalearn.errors import ConfigError
from metalearn.run.compare import folders
from metalearn.run.config import Experiment, parse
from metalearn.run.lock import Busy, held
from metalearn.run.rows import needs, share

FILE: dict[str, Any] = {
    **sinusoid(method=None, experiment="shared", run={"meta_steps": 40, "seeds": [0, 1]}),
    "methods": [
        {"name": "maml", "tune": {"inner_lr": {"min": 0.001, "max": 0.1}}},
        {"name": "reptile", "start": "maml"},
        {"label": "alone", "name": "scratch"},
    ],
    "budget": {"trials": 2, "once": True},
}


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("rows")) as commands:
        yield commands


def rows(out: Path) -> list[tuple[Experiment, Path]]:
    return folders(parse(FILE), out)


def names(out: Path) -> dict[Path, str]:
    return {folder: f"{experiment.label}-{experiment.run.seeds[0]}" for experiment, folder in rows(out)}


def test_what_a_row_needs(tmp_path: Path) -> None:
    name = names(tmp_path)
    found = {name[folder]: [name[one] for one in needs(experiment, folder, rows(tmp_path))]
             for experiment, folder in rows(tmp_path)}  # fmt: skip
    assert found == {
        "maml-0": [], "maml-1": ["maml-0"], "alone-0": [], "alone-1": ["alone-0"],
        "reptile-0": ["maml-0"], "reptile-1": ["maml-1", "reptile-0"],
    }  # fmt: skip


def test_rows_in_other_hands_are_seen_again_and_what_needs_them_waits(tmp_path: Path) -> None:
    name, done, looks, said = names(tmp_path), list[str](), list[str](), list[str]()

    def run(experiment: Experiment, folder: Path) -> None:
        if name[folder] == "maml-0" and len(looks) < 3:
            looks.append("maml-0")
            raise Busy((str(folder), "in other hands"))
        done.append(name[folder])

    share(rows(tmp_path), run, said.append, pause=0.0)
    assert done == ["alone-0", "alone-1", "maml-0", "maml-1", "reptile-0", "reptile-1"]
    assert said == ["maml seed 0: in the hands of another process"]  # once, though it was met three times


def test_an_error_of_a_row_is_the_error_of_all(tmp_path: Path) -> None:
    def run(experiment: Experiment, folder: Path) -> None:
        raise Busy((str(tmp_path / "elsewhere"), "what this row reads is in other hands"))

    with pytest.raises(ConfigError, match="in other hands"):
        share(rows(tmp_path), run, print, pause=0.0)


def scores(out: Path) -> dict[str, Any]:
    return {name: json.loads((folder / "result.json").read_text())["test"] for folder, name in names(out).items()}


def made(text: str, out: Path) -> list[str]:
    """The rows that a process said it has finished."""
    return [
        name
        for experiment, folder in rows(out)
        if f"{experiment.label} seed {experiment.run.seeds[0]}: loss" in text
        for name in [names(out)[folder]]
    ]


@pytest.fixture(scope="module")
def straight(metalearn: Commands) -> dict[str, Any]:
    done = metalearn("compare", write(metalearn.folder, "shared", FILE), "--out", "straight")
    assert done.code == 0, done.err
    assert sorted(made(done.err, metalearn.folder / "straight")) == sorted(names(metalearn.folder).values())
    return scores(metalearn.folder / "straight")


def test_two_processes_share_the_rows_and_come_to_the_same(metalearn: Commands, straight: dict[str, Any]) -> None:
    file, out = write(metalearn.folder, "shared", FILE), metalearn.folder / "two"
    hands = [metalearn.start("compare", file, "--out", out) for _ in range(2)]
    ended = [hand.wait() for hand in hands]
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    both = [made(one.err, out) for one in ended]
    assert sorted(both[0] + both[1]) == sorted(names(out).values()) and all(both)
    assert scores(out) == straight
    assert len(json.loads((out / "comparison.json").read_text())["rows"]) == 6 and (out / "report.html").exists()
    assert not list(out.rglob(".lock"))


def test_one_of_two_is_killed_and_the_other_makes_all_rows(metalearn: Commands, straight: dict[str, Any]) -> None:
    file, out = write(metalearn.folder, "shared", FILE), metalearn.folder / "killed"
    first: Running = metalearn.start("compare", file, "--out", out)
    assert first.wait_for(lambda: (out / "methods" / "maml" / "seed-0" / "metrics.jsonl").exists())
    second = metalearn.start("compare", file, "--out", out)
    assert second.wait_for(lambda: second.err.exists() and "in the hands of another" in second.err.read_text())
    first.kill()
    assert first.wait().code == -9
    done = second.wait()
    assert done.code == 0, done.err
    assert scores(out) == straight


def test_the_report_is_left_to_a_process_that_is_writing_it(metalearn: Commands, straight: dict[str, Any]) -> None:
    out = metalearn.folder / "straight"
    before = (out / "comparison.json").stat().st_mtime_ns
    with held(out):
        done = metalearn("compare", write(metalearn.folder, "shared", FILE), "--out", out)
    assert done.code == 0 and (out / "comparison.json").stat().st_mtime_ns == before
