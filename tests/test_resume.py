"""Kills: a run that is killed at any moment and resumed ends as one that was never disturbed, bit
for bit."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Commands, files_of, refused, sinusoid, write
from kills import going_on, killed, last, newest, same_end

from metalearn.storage import checkpoint

KILLS = 10
LONG = {
    "meta_steps": 120,
    "checkpoint_every": 7,
    "log_every": 4,
    "validate": {"every": 21, "episodes": 8, "keep": 2},
}


@pytest.fixture(scope="module")
def straight(metalearn: Commands) -> Path:
    """A run that nothing disturbed, of `long.yaml`."""
    file = write(metalearn.folder, "long", sinusoid(run=LONG))
    done = metalearn("train", file, "--out", "straight")
    assert done.code == 0, done.err
    return metalearn.folder / "straight"


def surely_killed(
    metalearn: Commands, folder: Path, ready: Callable[[], bool], *args: object
) -> None:
    """`killed`, in a folder made anew where the command was too fast to be caught."""
    while killed(metalearn, ready, *args, "--out", folder).code != -9:
        shutil.rmtree(folder)


def later(folder: Path, more: int, seconds: float) -> Callable[[], bool]:
    """A condition that comes true some checkpoints from now, and a little later: a kill between any
    two lines."""
    begin = newest(folder)

    def ready() -> bool:
        if newest(folder) < begin + more:
            return False
        time.sleep(seconds)
        return True

    return ready


def after(seconds: float) -> Callable[[], bool]:
    """A condition that comes true some time from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def test_killed_at_random_moments_it_ends_bit_for_bit_as_undisturbed(
    metalearn: Commands, straight: Path
) -> None:
    folder, file = metalearn.folder / "killed", metalearn.folder / "long.yaml"
    moments = random.Random(0)
    kills, steps = 0, set()
    while kills < KILLS:
        ready = later(folder, moments.choice((0, 1, 8, 15)), moments.uniform(0, 0.05))
        ended = killed(metalearn, ready, *going_on(folder, file))
        if ended.code == 0:  # the run was faster than its killer: begin another
            same_end(folder, straight)
            shutil.rmtree(folder)
            continue
        assert ended.code == -9, ended
        kills += 1
        steps.add(newest(folder))
    assert len(steps) > 1  # the kills met different moments
    done = metalearn(*going_on(folder, file))
    assert done.code == 0, done.err
    same_end(folder, straight)


MARKS = [
    "config.yaml",
    "metrics.jsonl",
    "checkpoints/.*.tmp",
    "checkpoints/*.sha256",
    "checkpoints/step-*14.pt",
]


@pytest.mark.parametrize("pattern", ["[!.]*", *MARKS, "scores.npz"])
def test_killed_while_a_file_is_written(metalearn: Commands, straight: Path, pattern: str) -> None:
    folder, file = metalearn.folder / "written", metalearn.folder / "long.yaml"
    shutil.rmtree(folder, ignore_errors=True)
    ended = killed(
        metalearn, lambda pattern=pattern: any(folder.glob(pattern)), "train", file, "--out", folder
    )
    # 0: some files are there so shortly that the killer may miss them
    assert ended.code in (-9, 0), ended
    shown = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert (folder / "config.yaml").exists() or not shown  # config.yaml comes first
    done = metalearn(*going_on(folder, file))
    assert done.code == 0, done.err
    same_end(folder, straight)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def lose_the_checksum(path: Path) -> None:
    checkpoint.checksum_of(path).unlink()


@pytest.fixture(scope="module")
def unfinished(metalearn: Commands, straight: Path) -> Path:
    """A run of `long.yaml` that was killed with at least two checkpoints."""
    folder = metalearn.folder / "unfinished"

    def many() -> bool:
        return len(checkpoint.steps_in(folder / "checkpoints")) > 2

    surely_killed(metalearn, folder, many, "train", metalearn.folder / "long.yaml")
    return folder


@pytest.mark.parametrize("harm", [cut_in_half, flip_a_byte, lose_the_checksum])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    metalearn: Commands, straight: Path, unfinished: Path, harm: Callable[[Path], None]
) -> None:
    folder = metalearn.folder / harm.__name__
    shutil.copytree(unfinished, folder)
    *_, good, bad = checkpoint.steps_in(folder / "checkpoints")
    path = checkpoint.path_of(folder / "checkpoints", bad)
    harm(path)
    done = metalearn("resume", folder)
    assert done.code == 0, done.err
    assert f"{path.name}" in done.err
    assert "falling back" in done.err
    assert f"resuming from step {good}" in done.err
    same_end(folder, straight)


def test_when_all_checkpoints_are_damaged_it_begins_again_and_says_so(
    metalearn: Commands, straight: Path, unfinished: Path
) -> None:
    folder = metalearn.folder / "all-bad"
    shutil.copytree(unfinished, folder)
    for step in checkpoint.steps_in(folder / "checkpoints"):
        flip_a_byte(checkpoint.path_of(folder / "checkpoints", step))
    refused(metalearn("evaluate", folder), "all-bad", "no valid checkpoint")
    done = metalearn("resume", folder)
    assert done.code == 0 and "restarting from step 0" in done.err, done
    same_end(folder, straight)


def test_a_finished_run_with_a_damaged_checkpoint_is_not_evaluated(
    metalearn: Commands, straight: Path
) -> None:
    folder = metalearn.folder / "finished-bad"
    shutil.copytree(straight, folder)
    step = json.loads((folder / "result.json").read_text())["checkpoint_step"]
    path = checkpoint.path_of(folder / "checkpoints", step)
    cut_in_half(path)
    before = files_of(folder)
    refused(metalearn("evaluate", folder), path.name, "SHA-256")
    assert files_of(folder) == before


def test_torn_lines_and_left_over_temporary_files_do_no_harm(
    metalearn: Commands, straight: Path, unfinished: Path
) -> None:
    folder = metalearn.folder / "torn"
    shutil.copytree(unfinished, folder)
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (folder / name).open("ab") as handle:
            handle.write(b'{"step": 9999, "sp')
    (folder / "checkpoints" / ".step-000009999.pt.1.tmp").write_bytes(b"torn")
    assert killed(metalearn, later(folder, 8, 0.0), "resume", folder).code in (-9, 0)
    assert metalearn("resume", folder).code == 0
    same_end(folder, straight)


def test_patience_holds_across_a_kill(metalearn: Commands) -> None:
    validate = {"every": 3, "episodes": 8, "patience": 2}
    run = {"meta_steps": 100_000, "checkpoint_every": 2, "validate": validate}
    file = write(
        metalearn.folder,
        "patient",
        sinusoid(run=run, method={"inner_lr": 1e-9, "outer": {"lr": 0.05}}),
    )
    ends = []
    for name, when in (("whole", "never"), ("broken", "checkpoints/*.pt")):
        folder = metalearn.folder / name
        ended = killed(
            metalearn,
            lambda folder=folder, when=when: any(folder.glob(when)),
            "train",
            file,
            "--out",
            folder,
        )
        if ended.code == -9:
            ended = metalearn("resume", folder)
        assert ended.code == 0, ended.err
        ends.append(last(folder)[0])
    assert ends[0] == ends[1] < 1000
    same_end(metalearn.folder / "broken", metalearn.folder / "whole")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "reptile", "inner_steps": 3},
        {
            "name": "fine_tune",
            "tune": {"inner_lr": {"min": 0.001, "max": 0.1, "distribution": "log_uniform"}},
        },
        {
            "name": "maml",
            "tune": {"inner_lr": {"min": 0.001, "max": 0.1}, "inner_steps": {"min": 1, "max": 3}},
        },
    ],
    ids=["slots", "tuned on new tasks", "tuned in training"],
)
def test_other_methods_and_tuning_survive_kills(
    metalearn: Commands, method: dict[str, Any]
) -> None:
    tuned = "tune" in method
    validate = {"every": 10, "episodes": 8}
    data = sinusoid(
        method=None,
        run={"meta_steps": 40, "validate": validate},
        budget={"trials": 5 if tuned else 0},
        evaluate={"headline_step": "tuned" if tuned else 3},
    )
    file = write(metalearn.folder, "other", {**data, "method": method})
    whole, broken = (
        metalearn.folder / f"{method['name']}-whole",
        metalearn.folder / f"{method['name']}-broken",
    )
    assert metalearn("train", file, "--out", whole).code == 0
    moments = random.Random(1)
    ended = killed(
        metalearn, lambda: (broken / "config.yaml").exists(), "train", file, "--out", broken
    )
    kills = 0
    while ended.code != 0:
        assert ended.code == -9, ended
        kills += 1
        waits = after(moments.uniform(0.2, 0.5) if kills < 4 else 600)
        ended = killed(metalearn, waits, "resume", broken)
    same_end(broken, whole)
    if tuned:
        trials = [
            json.loads((folder / "tune" / "trials.json").read_text()) for folder in (whole, broken)
        ]
        values = [[(trial["parameters"], trial["score"]) for trial in found] for found in trials]
        assert values[0] == values[1] and len(values[0]) == 5


def test_a_killed_comparison_continues_and_finishes(metalearn: Commands) -> None:
    data = sinusoid(experiment="killed-pair", run={"meta_steps": 40})
    del data["method"]
    items = [{"name": "maml"}, {"name": "reptile"}, {"name": "fine_tune"}]
    file = write(metalearn.folder, "killed-pair", {**data, "methods": items})
    assert metalearn("compare", file, "--out", "whole-pair").code == 0
    folder, whole = metalearn.folder / "broken-pair", metalearn.folder / "whole-pair"
    for pattern in (
        "methods",
        "methods/maml/*/checkpoints/*.pt",
        "methods/reptile/*/result.json",
        "comparison.json",
    ):
        ended = killed(
            metalearn,
            lambda pattern=pattern: any(folder.glob(pattern)),
            "compare",
            file,
            "--out",
            folder,
        )
        assert ended.code in (-9, 0), ended
    finished = (folder / "methods" / "maml" / "seed-0" / "result.json").read_bytes()
    assert metalearn("compare", file, "--out", folder).code == 0
    assert (folder / "methods" / "maml" / "seed-0" / "result.json").read_bytes() == finished
    for label in ("maml", "reptile", "fine_tune"):
        same_end(folder / "methods" / label / "seed-0", whole / "methods" / label / "seed-0")
    values = [json.loads((place / "comparison.json").read_text()) for place in (folder, whole)]
    assert values[0]["summary"] == values[1]["summary"]
    assert values[0]["paired"] == values[1]["paired"]
    assert (folder / "report.html").exists()
