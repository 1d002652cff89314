"""What goes wrong around a run: full disks, changed configs, numbers not finite, clocks, locks, old
formats."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Commands, files_of, refused, sinusoid, write
from kills import newest, planted, same_end

from metalearn.errors import ConfigError
from metalearn.storage import lock

OLD = Path(__file__).parent / "golden" / "schema_1"
STEPS = {
    "meta_steps": 24,
    "checkpoint_every": 4,
    "log_every": 2,
    "validate": {"every": 12, "episodes": 8},
}


@pytest.fixture(scope="module")
def file(metalearn: Commands) -> Path:
    return write(metalearn.folder, "small", sinusoid(run=STEPS))


@pytest.fixture(scope="module")
def straight(metalearn: Commands, file: Path) -> Path:
    """A run that nothing disturbed."""
    assert metalearn("train", file, "--out", "straight").code == 0
    return metalearn.folder / "straight"


# the file system


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("config.yaml", 0),
        ("metrics.jsonl", 3),
        ("checkpoints", 9),
        ("checkpoints", 18),
        ("scores.npz", 0),
        ("result.json", 0),
    ],
)
def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(
    metalearn: Commands, file: Path, straight: Path, place: str, number: int
) -> None:
    # without the word that the fault looks for
    folder = metalearn.folder / f"full-{place[::-1]}-{number}"
    fault = planted(place, number, str(errno.ENOSPC))
    ended = metalearn("train", file, "--out", folder, before=fault)
    refused(ended, place, "No space left on device")
    if place == "config.yaml":  # nothing of the run is there
        assert not (folder / "config.yaml").exists()
        assert metalearn("train", file, "--out", folder).code == 0
    else:
        assert "newest checkpoint" in ended.err and f"metalearn resume {folder}" in ended.err
        assert metalearn("resume", folder).code == 0
    same_end(folder, straight)


def test_a_limit_on_file_sizes_and_a_folder_that_became_read_only(
    metalearn: Commands, file: Path, straight: Path
) -> None:
    least = min(path.stat().st_size for path in (straight / "checkpoints").glob("*.pt")) - 1
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({least}, {least}))"
    for name, fault, words in (
        ("limited", limit, ("File too large", "step-000000004.pt")),
        (
            "read-only",
            planted("checkpoints", 13, str(errno.EROFS)),
            ("Read-only file system", "checkpoints"),
        ),
    ):
        folder = metalearn.folder / name
        refused(metalearn("train", file, "--out", folder, before=fault), *words)
        assert metalearn("resume", folder).code == 0
        same_end(folder, straight)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 12, 13, 14, 15, 17])
def test_killed_at_each_moment_of_writing_a_checkpoint(
    metalearn: Commands, file: Path, straight: Path, number: int
) -> None:
    """Of the checksum's four and the checkpoint's four; the first one and the second."""
    folder = metalearn.folder / f"torn-{number}"
    assert (
        metalearn("train", file, "--out", folder, before=planted("checkpoints", number)).code == -9
    )
    assert metalearn("resume", folder).code == 0
    same_end(folder, straight)


def _hold(folder: Path, ready: Any, done: Any) -> None:
    with lock.lock_folder(folder):
        ready.set()
        done.wait(60)


def test_one_process_on_one_run_directory(metalearn: Commands, file: Path, tmp_path: Path) -> None:
    folder, context = tmp_path / "run", multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder, ready, done))
    other.start()
    assert ready.wait(60)
    refused(metalearn("train", file, "--out", folder), str(folder), "another process is working")
    done.set()
    other.join()
    assert not folder.exists()  # nothing stays behind


def test_a_lock_whose_name_was_taken_away_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, its holder may end and remove the file: then it is another
    process's to make."""
    real, opened = fcntl.flock, []

    def late(handle: Any, how: int) -> None:
        real(handle, how)
        if not how & fcntl.LOCK_EX:
            return
        opened.append(handle)
        if len(opened) == 1:
            (tmp_path / lock.NAME).unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.lock_folder(tmp_path):
        assert len(opened) == 2 and (tmp_path / lock.NAME).exists()
        with pytest.raises(ConfigError, match="another process"), lock.lock_folder(tmp_path):
            pass


def test_a_clock_that_jumps_changes_nothing(
    metalearn: Commands, file: Path, straight: Path
) -> None:
    jumps = (
        "import itertools, time; n = itertools.count(); time.time = lambda: 1e9 - 86400.0 "
        "* (next(n) % 7)"
    )
    assert metalearn("train", file, "--out", "clock", before=jumps).code == 0
    same_end(metalearn.folder / "clock", straight)


#
# signals and configs


SLEEPS = """
import time
from metalearn.rng import fold_in
from metalearn.tasks.sinusoid import SinusoidSource as S
old, slow = S.sample, int(fold_in(0, "train", 4))
def sample(self, key, *args):
    if int(key) == slow and self.spec.split == "train":
        print("asleep", flush=True)
        time.sleep(600)
    return old(self, key, *args)
S.sample = sample
"""


def test_the_second_signal_ends_at_once(metalearn: Commands) -> None:
    """The step that does not end is one whose sampling sleeps."""
    data = sinusoid(
        run={
            "meta_steps": 8,
            "checkpoint_every": 2,
            "executor": "loop",
            "validate": {"every": None},
        }
    )
    started = metalearn.start(
        "train", write(metalearn.folder, "slow", data), "--out", "slow", before=SLEEPS
    )
    assert started.wait_for(lambda: started.out.exists() and "asleep" in started.out.read_text())
    started.kill(signal.SIGTERM)
    assert started.wait_for(lambda: "finishing this step" in started.err.read_text())
    started.kill(signal.SIGUSR1)
    assert started.wait().code == 75 and newest(metalearn.folder / "slow") == 4


def test_a_changed_config_is_refused_with_what_changed(metalearn: Commands, file: Path) -> None:
    folder = metalearn.folder / "changed"
    assert metalearn("train", file, "--out", folder, before=planted("checkpoints", 9)).code == -9
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["method"]["inner_lr"], config["run"]["meta_steps"], config["run"]["keep_last"] = (
        0.02,
        12,
        3,
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    before = files_of(folder)
    ended = metalearn("resume", folder)
    refused(ended, "--allow-change", "method.inner_lr: 0.01 -> 0.02", "run.meta_steps: 24 -> 12")
    assert "keep_last" not in ended.err and files_of(folder) == before
    assert metalearn("resume", folder, "--allow-change").code == 0
    assert newest(folder) == 12


def test_an_edit_of_a_run_that_has_tuned_is_refused_and_the_tuned_values_are_not(
    metalearn: Commands,
) -> None:
    tune = {"inner_lr": {"min": 0.001, "max": 0.1, "distribution": "log_uniform"}}
    data = sinusoid(run=STEPS, budget={"trials": 2})
    tuned = write(metalearn.folder, "tuned", {**data, "method": {**data["method"], "tune": tune}})
    folder = metalearn.folder / "edited"
    assert metalearn("train", tuned, "--out", folder, before=planted("scores.npz", 0)).code == -9
    assert list((folder / "tune").glob("*.json"))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("meta_steps: 24", "meta_steps: 12"))
    refused(metalearn("resume", folder), "run.meta_steps: 24 -> 12")
    (folder / "config.yaml").write_text(text)
    assert metalearn("resume", folder).code == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", {"kind": "valid", "split": "valid", "step": "a", "loss": 1.0}),
        ("metrics.jsonl", {"kind": "valid", "split": "valid", "loss": 1.0}),
        ("metrics.jsonl", {"kind": "valid", "split": "valid", "step": 2, "loss": "x"}),
        ("timing.jsonl", {"step": 4, "spent": 5}),
        ("timing.jsonl", {"step": 4, "spent": {"setup": {"seconds": [1]}}}),
        ("timing.jsonl", {"step": 4, "wall": "x", "spent": {}}),
    ],
)
def test_a_harmed_line_of_an_interrupted_run_is_a_sentence(
    metalearn: Commands, file: Path, straight: Path, tmp_path: Path, name: str, line: dict[str, Any]
) -> None:
    folder = tmp_path / "harmed"
    shutil.copytree(straight, folder)
    (folder / "result.json").unlink()
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join([json.dumps(line), *lines]) + "\n")
    before = files_of(folder)
    refused(metalearn("resume", folder), f"{name}, line 1")
    assert files_of(folder) == before


def test_lanes_of_another_number_of_tasks_are_refused(metalearn: Commands) -> None:
    method = {"name": "reptile", "inner_steps": 2, "inner_batch": 3}
    data = sinusoid(run={**STEPS, "tasks_per_step": 4}, method=method)
    folder = metalearn.folder / "lanes"
    spoiled = write(metalearn.folder, "lanes_of_four", data)
    assert metalearn("train", spoiled, "--out", folder, before=planted("checkpoints", 9)).code == -9
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("tasks_per_step: 4", "tasks_per_step: 8"))
    refused(metalearn("resume", folder, "--allow-change"), "run.tasks_per_step", "4")


# The tasks of step 7 of seed 0 have no finite targets.
SPOILED = """
from metalearn.rng import fold_in
from metalearn.tasks.sinusoid import SinusoidSource as S
old, bad = S.sample, int(fold_in(0, "train", 6))
def sample(self, key, *args):
    found = old(self, key, *args)
    spoiled = found.query._replace(y=found.query.y * float("nan"))
    hit = int(key) == bad and self.spec.split == "train"
    return found._replace(query=spoiled) if hit else found
S.sample = sample
"""
