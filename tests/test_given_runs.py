"""Runs with weights that were trained elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_pretrained import experiment, tiny

import metalearn as ml
from metalearn.models.backbones import UNKNOWN

__all__ = ["tiny"]  # the fixture
PRICE: dict[str, Any] = {"pretrain_flops": 1e15, "pretrain_source": "a paper"}


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("given", [{}, PRICE])
def test_a_run_starts_from_another_one_and_counts_given_weights_once(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    first = experiment()
    first["model"] |= {"frozen": False, **given}
    first["run"] |= {"meta_steps": 1, "examples_per_step": 4, "tasks_per_step": 2}
    ml.train(first, out=tmp_path / "first")
    second = {**first, "method": {"name": "meta_baseline", "start": str(tmp_path / "first")}}
    ml.train(second, out=tmp_path / "second")
    before, after = (result_of(tmp_path / name)["cost"] for name in ("first", "second"))
    own = before["pretrain"]["own"]
    assert own["flops"] > 0 and after["pretrain"]["own"] == own
    assert after["pretrain"]["flops"] == (1e15 + own["flops"] if given else UNKNOWN)
