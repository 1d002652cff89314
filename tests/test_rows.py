"""A comparison whose rows several processes share: each row made once, in an order that gives it
what it needs."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from commandline import Commands, Running, sinusoid, write
from messages import collect_messages

from metalearn.compare.compare import compare, folders
from metalearn.compare.scheduler import needs, run_rows
from metalearn.config.experiment import Experiment, parse
from metalearn.errors import ConfigError
from metalearn.storage.lock import Busy, lock_folder

FILE: dict[str, Any] = {
    **sinusoid(method=None, experiment="shared", run={"meta_steps": 40, "seeds": [0, 1]}),
    "methods": [
        {"name": "maml", "tune": {"inner_lr": {"min": 0.001, "max": 0.1}}},
        {"name": "reptile", "start": "maml"},
        {"label": "alone", "name": "scratch"},
    ],
    "budget": {"trials": 2, "once": True},
}


def rows(out: Path) -> list[tuple[Experiment, Path]]:
    return folders(parse(FILE), out)


def names(out: Path) -> dict[Path, str]:
    return {
        folder: f"{experiment.label}-{experiment.run.seeds[0]}" for experiment, folder in rows(out)
    }


def test_what_a_row_needs(tmp_path: Path) -> None:
    name = names(tmp_path)
    found = {
        name[folder]: [name[one] for one in needs(experiment, folder, rows(tmp_path))]
        for experiment, folder in rows(tmp_path)
    }
    assert found == {
        "maml-0": [],
        "maml-1": ["maml-0"],
        "alone-0": [],
        "alone-1": [],  # it tunes nothing
        "reptile-0": ["maml-0"],
        "reptile-1": ["maml-1"],
    }


def test_a_seed_waits_for_all_that_may_tune_for_it(tmp_path: Path) -> None:
    data = {**FILE, "run": {**FILE["run"], "seeds": [0, 1, 2]}}
    rows = folders(parse(data), tmp_path)
    last, folder = rows[2]
    assert [one.name for one in needs(last, folder, rows)] == ["seed-0", "seed-1"]
    rows[0][1].mkdir(parents=True)
    (rows[0][1] / "result.json").touch()
    assert needs(last, folder, rows) == []


def test_a_start_may_be_a_path_into_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {
        **FILE,
        "methods": [FILE["methods"][0], {"name": "reptile", "start": "out/methods/maml"}],
    }
    rows = folders(parse(data), Path("out"))
    assert needs(*rows[2], rows) == [rows[0][1]]


def test_rows_in_other_hands_are_seen_again_and_what_needs_them_waits(tmp_path: Path) -> None:
    name, done, looks, messages = names(tmp_path), list[str](), list[str](), collect_messages()

    def run(experiment: Experiment, folder: Path) -> None:
        if name[folder] == "maml-0" and len(looks) < 3:
            looks.append("maml-0")
            raise Busy((str(folder), "in other hands"))
        done.append(name[folder])

    run_rows(rows(tmp_path), run, pause=0.0)
    assert done == ["alone-0", "alone-1", "maml-0", "maml-1", "reptile-0", "reptile-1"]
    # once, though it was met three times
    assert messages == ["maml seed 0: another process is running it"]


def test_rows_that_wait_for_each_other_are_refused_and_not_waited_for(metalearn: Commands) -> None:
    methods = [{"name": "maml", "start": "reptile"}, {"name": "reptile", "start": "maml"}]
    file = write(metalearn.folder, "circle", {**FILE, "methods": methods})
    done = metalearn("compare", file, "--out", "circle")
    assert done.code == 2 and "no finished run for 'reptile'" in done.err


def test_a_row_of_another_config_that_appears_later_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = parse(FILE)
    compare(plan, tmp_path / "out")
    other = parse({**FILE, "run": {**FILE["run"], "meta_steps": 41}})
    # it looked when there was nothing
    monkeypatch.setattr("metalearn.compare.compare.check", lambda plan, out: None)
    with pytest.raises(ConfigError, match="another config"):
        compare(other, tmp_path / "out")


def test_who_waits_is_stopped_like_who_works(metalearn: Commands) -> None:
    file, out = (
        write(metalearn.folder, "waits", {**FILE, "methods": FILE["methods"][:1]}),
        metalearn.folder / "waits",
    )
    with lock_folder(out / "methods" / "maml" / "seed-0"):
        waiting = metalearn.start("compare", file, "--out", out)
        assert waiting.wait_for(
            lambda: (
                waiting.err.exists() and "another process is running it" in waiting.err.read_text()
            )
        )
        waiting.kill(signal.SIGTERM)
        done = waiting.wait()
    assert done.code == 75 and "repeat the command to continue" in done.err


def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match="No locks"), lock_folder(tmp_path):
        pass


def test_an_error_of_a_row_is_the_error_of_all(tmp_path: Path) -> None:
    def run(experiment: Experiment, folder: Path) -> None:
        raise Busy((str(tmp_path / "elsewhere"), "what this row reads is in other hands"))

    with pytest.raises(ConfigError, match="in other hands"):
        run_rows(rows(tmp_path), run, pause=0.0)


def scores(out: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / "result.json").read_text())["test"]
        for folder, name in names(out).items()
    }


def made(text: str, out: Path) -> list[str]:
    """The rows that a process reported as finished."""
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
    assert sorted(made(done.err, metalearn.folder / "straight")) == sorted(
        names(metalearn.folder).values()
    )
    return scores(metalearn.folder / "straight")


def test_two_processes_share_the_rows_and_come_to_the_same(
    metalearn: Commands, straight: dict[str, Any]
) -> None:
    file, out = write(metalearn.folder, "shared", FILE), metalearn.folder / "two"
    hands = [metalearn.start("compare", file, "--out", out) for _ in range(2)]
    ended = [hand.wait() for hand in hands]
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    both = [made(one.err, out) for one in ended]
    assert sorted(both[0] + both[1]) == sorted(names(out).values()) and all(both)
    assert scores(out) == straight
    assert len(json.loads((out / "comparison.json").read_text())["rows"]) == 6
    assert (out / "report.html").exists()
    assert not list(out.rglob(".lock"))


def test_one_of_two_is_killed_and_the_other_makes_all_rows(
    metalearn: Commands, straight: dict[str, Any]
) -> None:
    file, out = write(metalearn.folder, "shared", FILE), metalearn.folder / "killed"
    first: Running = metalearn.start("compare", file, "--out", out)
    assert first.wait_for(lambda: (out / "methods" / "maml" / "seed-0" / "metrics.jsonl").exists())
    second = metalearn.start("compare", file, "--out", out)
    assert second.wait_for(
        lambda: second.err.exists() and "another process is running it" in second.err.read_text()
    )
    first.kill()
    assert first.wait().code == -9
    done = second.wait()
    assert done.code == 0, done.err
    assert scores(out) == straight


def test_the_report_waits_for_a_process_that_is_writing_it(
    metalearn: Commands, straight: dict[str, Any]
) -> None:
    out = metalearn.folder / "straight"
    before = (out / "comparison.json").stat().st_mtime_ns
    with lock_folder(out):
        late = metalearn.start("compare", write(metalearn.folder, "shared", FILE), "--out", out)
        assert late.wait_for(
            lambda: late.err.exists() and late.err.read_text().count("already finished") == 6
        )
        assert (out / "comparison.json").stat().st_mtime_ns == before
    assert late.wait().code == 0 and (out / "comparison.json").stat().st_mtime_ns > before
