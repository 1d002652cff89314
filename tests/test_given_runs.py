"""Runs with weights that were trained elsewhere: a start from another run, and other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import experiment, tiny
from torch import nn

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.models import pretrained
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


def with_file(file: Path, seed: int) -> dict[str, Any]:
    """An experiment with weights of a file, which is written."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        )
    torch.save(net.state_dict(), file)
    pretrained._load.cache_clear()
    data = experiment()
    data["model"] |= {"weights": str(file)}
    return data


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "mine.pt", tmp_path / "run"
    ml.train(with_file(file, 1), out=folder)
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["weights_sha256"] == result_of(folder)["provenance"]["weights_sha256"]
    ml.load_run(folder)
    with_file(file, 2)
    with pytest.raises(ConfigError, match=r"have SHA-256 .*: restore those weights"):
        ml.load_run(folder)
    (folder / "result.json").unlink()
    with pytest.raises(ConfigError, match="have SHA-256"):
        ml.resume(folder)
    with_file(file, 1)
    ml.load_run(folder)
