"""Notes and captions of a page: what they say of the numbers beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import check_page
from run_folders import searching, the_check, write_rows

from metalearn.report.page import write_report


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("comparison")
    root = write_rows(folder, ["maml", "proto_net", "scratch"], seeds=3)
    return check_page(write_report([root], root / "report.html")).text


def test_sums_of_seconds_say_what_they_leave_out(words: str) -> None:
    """cost_block.up_front_cost leaves out both phases."""
    assert words.count("include neither set-up nor compiling and first steps") == 3
    assert "Neither set-up nor compiling and first steps are in these columns" in words
    assert "of meta-training, without set-up, compiling and first steps; learning" in words
    assert "Total cost is the up-front cost, without set-up, plus" in words


@pytest.mark.parametrize(
    "note",
    [
        "the higher up-front cost breaks even by point estimates; the table below counts",
        "A task stops where its query labels, which no method has, say that it stays",
        "FLOPs of products and convolutions without the overhead of a supernet",
        "it is not known how many of its FLOPs belong to one architecture",
        "a gradient of a batch and one of a single task count the same",
        "IQM: mean of the middle half of all scores, of every task under every seed",
        "thin lines: single seeds of methods with steps",
    ],
)
def test_captions_say_what_their_numbers_are(words: str, note: str) -> None:
    assert note in words


def test_pairs_say_which_seeds_and_tasks_they_are_over(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "reptile"], seeds=3)
    write_rows(tmp_path, ["scratch"], episodes=40)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["maml", "scratch"]]}')
    out = write_report([tmp_path], tmp_path / "report.html")
    text, words = out.read_text(), check_page(out).text
    assert '(seeds 0, 1, 2; 600 tasks)"' in text and '(seed 0; 40 tasks)"' in text
    assert "(seeds: 3 and 1; 40 tasks)" in text
    assert "differences of pairs with other seeds or tasks do not add up" in words
    assert "counts of different pairs do not add up" in words
    assert "which alone were tested (question 1): 1 of these 2 pairs." in words
    assert "With one common seed, so for these trained networks only: 2." in words
    assert "Pairs that differ in one part" not in words


def test_rows_of_fewer_tasks_are_marked_in_every_table(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "proto_net"], seeds=3)
    write_rows(tmp_path, ["scratch"], seeds=3, episodes=40)
    text = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "Tested on fewer tasks than the others: scratch (first 40)." in text
    heads = [part.split("<h2")[0] for part in text.split('<h2 id="q')]
    marked = {part[0] for part in heads if "first 40 tasks</small>" in part}
    assert {"1", "2", "3", "5"} <= marked


def _edit_config(root: Path, label: str, section: str, **fields: Any) -> None:
    for file in root.glob(f"methods/{label}/*/config.yaml"):
        config = yaml.safe_load(file.read_text())
        config[section] |= fields
        file.write_text(yaml.safe_dump(config))


def test_a_difference_from_training_tasks_needs_ten_tasks(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "reptile", "scratch"])
    _edit_config(tmp_path, "maml", "run", validate={"episodes": 4})
    _edit_config(tmp_path, "reptile", "run", validate={"episodes": 40})
    why = the_check(tmp_path, "train-task against validation-task curves")["why"]
    assert re.search(r"end: maml over 4 tasks, too few to show; reptile \+\d.*over 40 tasks$", why)


def test_random_searches_alone_need_no_random_control(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"])
    searching(tmp_path, "random", "random", seeds=1)
    why = the_check(tmp_path, "random search beside every searcher")["why"]
    assert why == "does not apply: every search is random (random)"


def test_a_method_with_one_validation_is_named_below_the_curves(tmp_path: Path) -> None:
    """It was trained, and has no panel; so has one that starts from another."""
    write_rows(tmp_path, ["maml", "reptile", "linear_probe"])
    file = tmp_path / "methods/reptile/seed-0/metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    _edit_config(tmp_path, "linear_probe", "method", start="reptile")
    words = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "No such curves for reptile: fewer than two validations during training." in words
    assert "Starts: from the network of reptile, with its cost: linear_probe." in words
