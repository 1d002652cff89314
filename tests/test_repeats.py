"""Rows that are there twice, and values that do not vary: counted, warned of, refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from run_folders import the_check, write_run

from metalearn.errors import ConfigError
from metalearn.logger import warn_once
from metalearn.tasks import Arrays

SMALL: dict[str, Any] = {"shots": 2, "queries": 2, "fractions": (0.5, 0.25, 0.25)}
PLACE = np.arange(80) // 10  # of 8 classes or groups


def rows() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(80, 3))


def found(*data: Any, **fields: Any) -> dict[str, Any]:
    warn_once.cache_clear()
    return Arrays(*data, **{**SMALL, **fields}).build().facts


def split_of(groups: dict[str, list[int]]) -> list[str]:
    of = {number: name for name, numbers in groups.items() for number in numbers}
    return [of.get(int(number), "train") for number in PLACE]


def test_new_rows_have_no_facts_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    x = rows()
    assert found(x, PLACE, ways=2) == {} == found(x, x[:, 0], group=PLACE)
    x[0], x[11] = 1.0, 1.0  # the same inputs with other values: noise, or another task
    assert found(x, np.arange(80) / 80, group=PLACE) == {}
    assert not caplog.records


def test_rows_of_two_classes_and_of_two_splits_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = rows()
    x[0], x[11], x[75] = 0.0, 0.0, -0.0  # of classes 0, 1 and 7
    x[21] = x[22]
    split = split_of({"valid": [5], "test": [6, 7]})
    counts = {"rows_in_several": 3, "rows_repeated": 1, "test_rows_in_training": 1}
    assert found(x, PLACE, ways=2, split=split) == counts
    several, again = (record.getMessage() for record in caplog.records)
    assert "3 of 80 rows have the same inputs as a row of another class, 1 of them test" in several
    assert "1 of 80 rows have the same inputs as another of their class" in again


def test_rows_of_two_groups_are_equal_with_their_values(caplog: pytest.LogCaptureFixture) -> None:
    x, y = rows(), np.arange(80) / 80
    x[60:70], y[60:70] = x[:10], y[:10]  # group 6 is group 0 under another name
    split = split_of({"valid": [5], "test": [6, 7]})
    counts = {"rows_in_several": 20, "test_rows_in_training": 10}
    assert found(x, y, group=PLACE, split=split) == counts
    assert "20 of 80 rows have the same inputs and values" in caplog.text
    assert Arrays(x, y, group=PLACE, split=split, **SMALL).build("test").facts == {}


def test_values_that_are_all_the_same_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    x, split = rows(), split_of({"valid": [5], "test": [6, 7]})
    y = np.where(np.isin(PLACE, [6, 7]), np.arange(80) / 80, 0.5)
    with pytest.raises(ConfigError, match=r"'y' is 0\.5 in all 50 rows of the training split"):
        found(x, y, group=PLACE, split=split)
    y[0] = 0.4  # one group varies, and the others may be constant
    assert found(x, y, group=PLACE, split=split) == {}
    assert not caplog.records
    two = np.stack([np.arange(80) / 80, np.ones(80)], 1)
    assert found(x, two, group=PLACE, split=split) == {}
    assert "output 2 of 'y' is 1 in all rows of the training split" in caplog.text


def test_a_check_fails_where_rows_of_the_test_are_those_of_training(tmp_path: Any) -> None:
    def with_rows(result: dict[str, Any]) -> None:
        result["facts"] = {"test_rows_in_training": 7}

    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml", change=with_rows)
    found = the_check(tmp_path, "test rows are new")
    assert not found["passed"] and "7 rows of the test split" in found["why"]
