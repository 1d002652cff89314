"""The GPU suite: its pieces can be started, are continued, and end in one section of Markdown."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.bench import gpu_section, gpu_suite
from metalearn.bench.command import BenchOptions, _check, _initial_data, _replace_skipped
from metalearn.bench.gpu_suite import Piece, pieces, suite, work_through
from metalearn.config.experiment import load
from metalearn.errors import ConfigError

SAVING = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
if pathlib.Path("saved").exists():
    print("continued")
    sys.exit(0)
print("begun", flush=True)
time.sleep(60)
"""


def options_of(words: tuple[str, ...]) -> dict[str, list[str]]:
    """--name value pairs of a command."""
    found: dict[str, list[str]] = {}
    for name, value in itertools.pairwise(words):
        if name.startswith("--"):
            found.setdefault(name, []).append(value)
    return found


def test_every_piece_is_a_command_that_can_be_started(tmp_path: Path) -> None:
    found = pieces(tmp_path)
    assert len({piece.name for piece in found}) == len(found)
    for piece in found:
        words = piece.command[piece.command.index("-m") + 2 :]
        if "pytest" in piece.command:
            assert (gpu_suite.CHECKOUT / piece.command[-1]).is_file()
        elif words[0] == "bench":
            given = options_of(words)
            _check(BenchOptions([words[1]], executors=given.get("--executor", ())))
        else:
            overrides = [word for word in words if "=" in word and not word.startswith("--")]
            run = load(words[1], [w for w in overrides if "device" not in w]).experiments[0].run
            assert words[0] == "train" and run.chunk is None and piece.again


def test_a_piece_that_is_stopped_is_continued_and_one_that_is_done_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_suite, "LIMIT", 2.0)
    words = (sys.executable, "-c", SAVING)
    failing = (sys.executable, "-c", "print('no kernel'); raise SystemExit(4)")
    todo = [Piece("short", (sys.executable, "-c", "print('12 passed')")), Piece("broken", failing)]
    todo.append(Piece("long", words, words))
    state = work_through(todo, tmp_path)
    expected = {"short": "done", "broken": "failed", "long": "done"}
    assert {name: entry["status"] for name, entry in state.items()} == expected
    assert state["short"]["last"] == "12 passed" and state["broken"]["code"] == 4
    assert (tmp_path / "long.log").read_text().splitlines() == ["begun", "continued"]
    assert json.loads((tmp_path / "pieces.json").read_text()) == state
    monkeypatch.setattr(gpu_suite, "_run", lambda piece, *rest: pytest.fail(piece.name))
    assert work_through([todo[0], todo[2]], tmp_path)["long"]["status"] == "done"


def test_nothing_is_begun_after_the_time_of_a_call(tmp_path: Path) -> None:
    state = work_through([Piece("late", ("false",))], tmp_path, deadline=0.0)
    assert state == {"late": {"status": "open"}}


def test_the_section_holds_targets_pieces_and_rows(tmp_path: Path) -> None:
    common: dict[str, Any] = {"workload": gpu_section.POOLED, "tasks": 32, "iqr_seconds": 0.001}
    common |= {"rounds": 9, "compile_seconds": 3.0, "peak_bytes": 10**9, "gradient_error": 1e-5}
    rows = [
        {**common, "engine": "native", "executor": "graph", "median_seconds": 0.004},
        {**common, "engine": "learn2learn", "median_seconds": 0.2},
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows, "workloads": {}}))
    (tmp_path / "omniglot" / "seed-0").mkdir(parents=True)
    cost = {"compile": {"seconds": 30.0}, "meta_train": {"seconds": 270.0}}
    result = {"cost": cost, "headline": {"value": 0.984}}
    (tmp_path / "omniglot" / "seed-0" / "result.json").write_text(json.dumps(result))
    (tmp_path / "precision-bf16").mkdir()
    environment = {"precision": {"precision": "bf16", "gradient_error": 0.012}}
    (tmp_path / "precision-bf16" / "environment.json").write_text(json.dumps(environment))
    facts = {"card": "A card", "driver": "1.2", "cudnn": 9}
    state = {"tests-test_cuda": {"status": "done", "seconds": 61.0, "last": "144 passed | ok"}}
    text = gpu_section.render(facts, tmp_path, state)
    for part in (
        *("## A card", "driver: 1.2", "| 50.0 |", "| 300 s |", "| 98.40 |", "144 passed \\| ok"),
        *("| bf16 | 1.2e-02 | not measured |", "learn2learn", "native (graph)"),
    ):
        assert part in text, (part, text)


def test_without_a_card_the_suite_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        suite(tmp_path / "gpu", None)
    assert not (tmp_path / "gpu").exists()


def test_rows_of_tf32_and_of_float32_share_no_file() -> None:
    for before, after in ((False, True), (True, False)):
        earlier = _initial_data("cpu", None, BenchOptions(tf32=before))
        assert _initial_data("cpu", earlier, BenchOptions(tf32=before))["rows"] == []
        with pytest.raises(ConfigError, match="another tf32"):
            _initial_data("cpu", earlier, BenchOptions(tf32=after))
    del earlier["environment"]["tf32"]  # as by a version without the option
    assert _initial_data("cpu", earlier, BenchOptions())["rows"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
@pytest.mark.parametrize(("device", "why"), [("cpu", r"\(got cpu\)"), ("auto", r"\(got cpu\)")])
def test_tf32_without_a_cuda_device_is_refused(device: str, why: str) -> None:
    """Products of a CPU are not rounded, so that the record would not be true."""
    with pytest.raises(ConfigError, match=f"--tf32: needs a CUDA device {why}: omit it"):
        _check(BenchOptions(tf32=True, device=device))


def test_an_engine_that_is_measured_now_is_no_longer_left_out() -> None:
    jax, higher, other = (
        {"workload": workload, "engine": engine, "why": "not installed"}
        for workload, engine in (("w", "jax"), ("w", "higher"), ("v", "jax"))
    )
    data = {"skipped": [jax, higher, other]}
    _replace_skipped(data, [{"workload": "w", "engine": "jax"}], [{**higher, "why": "no cell"}])
    assert data["skipped"] == [other, {**higher, "why": "no cell"}]
