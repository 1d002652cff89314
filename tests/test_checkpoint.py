"""Checkpoints and the files of a run: whole or absent, and the newest valid one is loaded."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import collect_messages

from metalearn.errors import ConfigError
from metalearn.storage import checkpoint, files
from metalearn.tree import named_leaves
from metalearn.types import MetaState


def state_of(step: int, width: int = 3, lanes: int | None = None) -> MetaState:
    meta = {
        "params": {"a.weight": torch.full((width, 2), step + 0.1), "a.bias": torch.zeros(width)}
    }
    task_state = None if lanes is None else {"slots": torch.arange(2.0 * lanes).view(lanes, 2)}
    return MetaState(
        meta, {"count": torch.tensor(float(step))}, task_state, torch.tensor(float(step))
    )


def same(a: MetaState, b: MetaState) -> bool:
    mine, other = named_leaves(a), named_leaves(b)
    return set(mine) == set(other) and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 5, 10 and 15."""
    for step in (5, 10, 15):
        checkpoint.save(checkpoint.path_of(tmp_path, step), state_of(step))
    return tmp_path


def newest(folder: Path) -> tuple[int | None, str]:
    """(step of what is loaded, all messages)."""
    messages = collect_messages()
    found = checkpoint.newest(folder, state_of(0))
    if found is None:
        return None, "\n".join(messages)
    assert same(found[1], state_of(found[0]))
    return found[0], "\n".join(messages)


def test_a_checkpoint_is_a_flat_file_of_named_tensors(folder: Path) -> None:
    path = checkpoint.path_of(folder, 10)
    named = torch.load(path, weights_only=True)
    assert set(named) == {"meta.params.a.weight", "meta.params.a.bias", "opt.count", "step"}
    assert same(checkpoint.load(path, state_of(0)), state_of(10))
    assert newest(folder) == (15, "")
    assert checkpoint.steps_in(folder) == [5, 10, 15] and checkpoint.steps_in(folder / "none") == []
    assert len(list(folder.iterdir())) == 6  # no temporary file is left


def test_lanes_of_another_width_are_taken_and_other_models_refused(tmp_path: Path) -> None:
    path = checkpoint.path_of(tmp_path, 1)
    checkpoint.save(path, state_of(1, lanes=4))
    loaded = checkpoint.load(path, state_of(0, lanes=1))
    assert loaded.lanes is not None and loaded.lanes["slots"].shape == (4, 2)
    with pytest.raises(
        ConfigError, match=r"another model: meta\.params\.a\.weight is \[3, 2\], must be \[5, 2\]"
    ):
        checkpoint.load(path, state_of(0, width=5, lanes=1))
    other = state_of(0)._replace(meta={"b.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"another method or model: missing: meta\.b\.weight"):
        checkpoint.load(path, other)


@settings(max_examples=60, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    cut=st.booleans(),
    of_sum=st.booleans(),
)
def test_one_flipped_bit_or_a_cut_anywhere_falls_back(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, cut: bool, of_sum: bool
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    for step in (5, 10):
        checkpoint.save(checkpoint.path_of(folder, step), state_of(step))
    path = checkpoint.path_of(folder, 10)
    # Of the checksum file only the digest counts: the rest is a name for people.
    damaged_file, length = (
        (checkpoint.checksum_of(path), 64) if of_sum else (path, path.stat().st_size)
    )
    content, at = bytearray(damaged_file.read_bytes()), int(place * length)
    if cut:
        content = content[:at]
    else:
        content[at] ^= 1 << bit
    damaged_file.write_bytes(content)
    step, messages = newest(folder)
    assert step == 5 and path.name in messages and "falling back" in messages, messages
    shutil.rmtree(folder)


def test_what_is_missing_or_beyond_reading_falls_back_too(folder: Path) -> None:
    checkpoint.checksum_of(checkpoint.path_of(folder, 15)).unlink()
    step, messages = newest(folder)
    assert step == 10 and "step-000000015.pt" in messages
    checkpoint.checksum_of(checkpoint.path_of(folder, 10)).write_text("")
    assert newest(folder)[0] == 5
    checkpoint.path_of(folder, 5).write_bytes(b"")
    step, messages = newest(folder)
    assert (
        step is None
        and "restarting from step 0" in messages
        and messages.count("falling back") == 3
    )
    assert newest(folder / "empty") == (None, "")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_whole_file_of_another_kind_falls_back(folder: Path) -> None:
    """A file that matches its checksum and is no checkpoint: someone's own, or a pickle of code,
    which is not run."""
    path = checkpoint.path_of(folder, 15)
    for content in (b"hello", b"\x80\x04cos\nsystem\n(S'true'\ntR."):
        path.write_bytes(content)
        checkpoint.checksum_of(path).write_text(hashlib.sha256(content).hexdigest())
        step, messages = newest(folder)
        assert step == 10 and path.name in messages, messages
    torch.save([1, 2], path)
    checkpoint.checksum_of(path).write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    assert newest(folder)[0] == 10


def test_only_the_wanted_checkpoints_are_kept(folder: Path) -> None:
    checkpoint.keep_only(folder, {5, 15, 20})
    expected = [f"step-{step:09d}.pt{end}" for step in (5, 15) for end in ("", ".sha256")]
    assert sorted(path.name for path in folder.iterdir()) == expected


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "below" / "config.yaml"
    files.write_yaml(path, {"a": 1})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_yaml(path, {"a": 2})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": [math.nan, {"b": (math.inf, 1.5)}], 3: -math.inf})
    assert json.loads(path.read_text()) == {"a": [None, {"b": [None, 1.5]}], "3": None}
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"x\.json"):
        files.read_json(path)


def test_lines_are_read_up_to_a_torn_one_and_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert files.read_lines(path) == []
    rows = [{"step": step, "loss": step / 3} for step in (1, 2, 2, 3)]
    files.append_lines(path, rows)
    files.append_lines(path, [])
    whole = path.read_bytes()
    with path.open("ab") as handle:
        handle.write(b'{"step": 4, "lo')
    assert files.read_lines(path) == rows
    files.cut_lines(path, 3)
    assert path.read_bytes() == whole
    files.cut_lines(path, 2)
    assert files.read_lines(path) == rows[:3]
    path.write_bytes(whole + b"3\n" + whole)
    assert files.read_lines(path) == rows
