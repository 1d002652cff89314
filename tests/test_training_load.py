"""Up-front seconds: time in which training waited for a core, and what follows from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import the_check, write_run

from metalearn.evaluate.cost_block import EACH, waiting_share
from metalearn.evaluate.ledger import CostLedger
from metalearn.machine import waiting_seconds
from metalearn.results.comparison import collect

NAME = "training did not wait for cores"
MEASURED = waiting_seconds() is not None


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float | None]]:
    """The seconds that this process has waited for a core, which a test changes."""
    seconds: list[float | None] = [0.0]
    monkeypatch.setattr("metalearn.evaluate.ledger.waiting_seconds", lambda: seconds[0])
    yield seconds


def test_waiting_belongs_to_the_phase_that_waited(waited: list[float | None]) -> None:
    ledger = CostLedger(waiting=True)
    with ledger.span("setup"):
        waited[0] = 1.0
        with ledger.span("meta_train"):
            waited[0] = 3.0
            with ledger.under("tune").span("adapt"):
                waited[0] = 7.0
            with ledger.paused():
                waited[0] = 100.0
            waited[0] = 100.5
    cost = ledger.cost()
    found = {phase: cost[phase]["seconds_waiting"] for phase in ("setup", "meta_train", "tune")}
    assert found == {"setup": 1.0, "meta_train": 2.5, "tune": 4.0}
    assert cost["search"]["seconds_waiting"] == 0.0
    assert "seconds_waiting" not in CostLedger().cost()["setup"]


def test_seconds_of_a_file_without_waiting_make_it_unknown(waited: list[float | None]) -> None:
    """As of an earlier version: a checkpoint, a copied trial, or the run that this one starts
    from."""
    ledger = CostLedger(waiting=True)
    with ledger.span("meta_train"):
        waited[0] = 1.0
    ledger.add("meta_train", 0.0, gradient_steps=4)
    assert ledger.cost()["meta_train"]["seconds_waiting"] == 1.0
    ledger.add("meta_train", 5.0)
    assert ledger.cost()["meta_train"]["seconds_waiting"] is None
    waited[0] = None  # a system that does not report it
    with ledger.span("pretrain"):
        pass
    assert ledger.cost()["pretrain"]["seconds_waiting"] is None


def test_the_fraction_is_that_of_all_up_front_seconds() -> None:
    phases = {"tune": {"seconds": 10.0, "seconds_waiting": 3.0}, "adapt": {"seconds": 5.0}}
    phases |= {"meta_train": {"seconds": 30.0, "seconds_waiting": 1.0}, "setup": {"seconds": 9.0}}
    assert waiting_share(phases) == 0.1
    search = {"seconds_batched": 1.0, "seconds": 1.0}  # per task, so measured again
    assert waiting_share({**phases, "search": search}) == 0.1
    search["once"] = {"seconds": 10.0}  # type: ignore[assignment]
    assert waiting_share({**phases, "search": search}) is None
    assert waiting_share({"meta_train": {"seconds": 0.0}}) == 0.0


@pytest.mark.skipif(not MEASURED, reason="the system does not report waiting")
def test_a_process_that_shares_its_core_waits() -> None:
    before, cores = waiting_seconds(), os.sched_getaffinity(0)
    core = {min(cores)}
    loop = f"import os; os.sched_setaffinity(0, {core})\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", loop])
    try:
        os.sched_setaffinity(0, core)
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
    finally:
        os.sched_setaffinity(0, cores)
        other.kill()
        other.wait()
    after = waiting_seconds()
    assert before is not None and after is not None and after > before


def rows(folder: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The break-even row in seconds of two rows, of which one differs by `change`."""
    for seed in range(3):
        for label in ("maml", "reptile"):
            place = folder / f"methods/{label}/seed-{seed}"
            write_run(place, label, label, seed, change=change if label == "maml" else id)
    (folder / "comparison-request.json").write_text('{"contrasts": [["maml", "reptile"]]}')
    found = collect(folder, target={"metric": "accuracy", "value": 0.3})
    return dict(next(row for row in found["break_even"] if row["axis"] == "seconds"))


def waits(share: float | None) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        entry = result["cost"]["meta_train"]
        entry["seconds_waiting"] = None if share is None else share * entry["seconds"]

    return change


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.05, ""),
        (0.3, "maml: its training waited for a core in 30% of its time"),
        (None, "maml: the time that its training waited for a core was not recorded"),
    ],
)
def test_no_verdict_in_seconds_of_training_that_waited(
    tmp_path: Path, share: float | None, words: str
) -> None:
    row = rows(tmp_path, waits(share))
    check = the_check(tmp_path, NAME)
    assert check["passed"] != bool(words)
    if words:
        assert row["verdict"] == "undecided" and words in row["why"]
        assert words.removeprefix("maml: ") in check["why"] and "maml seed 2" in check["why"]
    else:
        assert "no verdict in seconds" not in row["why"]
        assert check["why"] == "at most 5.0% of the up-front seconds of a run"


def test_a_file_without_the_new_fields_is_read(tmp_path: Path) -> None:
    """A result of an earlier version has neither waiting nor rounds."""

    def earlier(result: dict[str, Any]) -> None:
        for entry in result["cost"].values():
            entry.pop("seconds_waiting", None)
            entry.pop("rounds", None)

    row = rows(tmp_path, earlier)
    assert row["verdict"] == "undecided" and "the seconds of each round were not" in row["why"]
    check = the_check(tmp_path, NAME)
    assert not check["passed"] and "was not recorded (maml seed 0" in check["why"]


def test_rounds_stay_beside_the_medians(tmp_path: Path) -> None:
    """The fixture of these tests has what a timed run has."""
    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml")
    (run,) = collect(tmp_path)["rows"]
    assert all(run["cost"][phase]["rounds"]["seconds_alone"] for phase in EACH)
