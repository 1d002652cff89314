"""Notes and captions of a page: what they say of the numbers beside them."""

from __future__ import annotations

import pytest
from pages import check_page
from run_folders import write_rows

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
    assert "Total cost is the up-front cost, without set-up, plus" in words


@pytest.mark.parametrize(
    "note",
    [
        "the higher up-front cost breaks even by point estimates; the table below counts",
        "A task stops where its query labels, which no method has, say that it stays",
        "FLOPs of products and convolutions without the overhead of a supernet",
        "it is not known how many of its FLOPs belong to one architecture",
        "a gradient of a batch and one of a single task count the same",
    ],
)
def test_captions_say_what_their_numbers_are(words: str, note: str) -> None:
    assert note in words
