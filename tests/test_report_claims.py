"""What the first sentences of a page claim, and what they do not if a check failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import check_page
from run_folders import write_rows

from metalearn.report.page import write_report


def page_of(root: Path) -> str:
    return check_page(write_report([root], root / "report.html")).text


def first_sentences(root: Path) -> str:
    """From the winner to the list of checks."""
    text = page_of(root)
    return text[text.index("has the best mean") : text.index(" checks ")]


def untimed(result: dict[str, Any]) -> None:
    result["timing"]["others"] = 0.6


def waiting(result: dict[str, Any]) -> None:
    for entry in result["cost"].values():
        entry["seconds_waiting"] = entry["seconds"]


@pytest.mark.parametrize("change", [untimed, waiting])
def test_the_answer_has_no_seconds_if_their_check_failed(tmp_path: Path, change: Any) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=3, change=change)
    text = first_sentences(tmp_path)
    assert "Its up-front cost was 96 GFLOP of meta-training" in text
    assert "learning one new task takes 30 MFLOP, without predicting its queries. Costs" in text
    assert "Costs are in FLOPs, as a check of the s" in text
    assert " ms" not in text and " s of " not in text


def test_the_answer_has_the_seconds_of_a_quiet_machine(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=3)
    text = first_sentences(tmp_path)
    assert "up-front cost was 92.5 s of meta-training, without set-up, compiling and first" in text
    assert "first steps; learning one new task takes 12 ms in a batch of tasks, 31 ms alone" in text
    assert "alone, without predicting its queries." in text


def test_the_answer_says_that_the_best_row_is_transductive(tmp_path: Path) -> None:
    def inductive(result: dict[str, Any]) -> None:
        result |= {"normalisation": "support", "transductive": False}

    words = "each new task, transductive: normalised by the statistics of the query batch"
    write_rows(tmp_path / "a", ["maml", "scratch"], seeds=3)
    assert words in first_sentences(tmp_path / "a")
    write_rows(tmp_path / "b", ["maml", "scratch"], seeds=3, change=inductive)
    assert "transductive" not in first_sentences(tmp_path / "b")
