"""Batch and Learned as pytrees of torch, and modules under their former names."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree

import metalearn as ml
from metalearn.tree import named_leaves
from metalearn.types import Batch, Episode, Learned


def test_one_class_is_no_classification() -> None:
    with pytest.raises(ml.ConfigError, match=r"ways: must be >= 2 \(got 1\)"):
        ml.EpisodeSpec("classification", 1, 2, 2, (3,), 1, 5)


@pytest.mark.parametrize("kind", [Batch, Episode, ml.EpisodeSpec])
def test_the_docstring_lists_every_field(kind: Any) -> None:
    """The site shows docstrings, and no comments."""
    documented = re.findall(r"^    (\w+): ", kind.__doc__, re.MULTILINE)
    assert documented == list(kind.__annotations__)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_passes_through_torch_with_or_without_weight(weighted: bool) -> None:
    weight = torch.ones(3, 4) if weighted else None
    batch = Batch(torch.randn(3, 4, 2), torch.randn(3, 4), weight)
    doubled = torch.func.vmap(lambda one: one._replace(x=2 * one.x))(batch)
    assert isinstance(doubled, Batch)
    assert torch.equal(doubled.x, 2 * batch.x)
    assert (doubled.weight is None) == (not weighted)
    names = ["x", "y", "weight"] if weighted else ["x", "y"]
    assert list(named_leaves(batch)) == names
    spec = _pytree.tree_structure(batch)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec
    # One axis for each field, as in any namedtuple: y is shared.
    shared = torch.func.vmap(lambda one: one.x + one.y[0, 0], in_dims=(Batch(0, None),))
    if not weighted:
        assert torch.equal(shared(batch), batch.x + batch.y[0, 0])


def test_episodes_without_weight_pass_through_torch() -> None:
    source = ml.tasks.Sinusoid(shots=3).build()
    tasks = source.sample(ml.fold_in(0, "x"), 4)
    shots = torch.func.vmap(lambda episode: episode.support.x.sum())(tasks)
    assert torch.allclose(shots, tasks.support.x.sum((1, 2)))


def test_predictions_pass_through_torch() -> None:
    learned = torch.func.vmap(lambda x: Learned(x, {"size": x.sum()}))(torch.ones(3, 2))
    assert learned.log_deviation is None and learned.notes["size"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("former", "name"),
    [("run.commands", "catalogue"), ("run.load", "LoadedRun"), ("run.sweep.file", "read")],
)
def test_former_names_of_modules_give_the_new_ones(former: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"metalearn\.{former} is now"):
        module = importlib.reload(importlib.import_module(f"metalearn.{former}"))
    present = {new for old, new in ml.MOVED.items() if f"metalearn.{former}".startswith(old)}
    assert any(getattr(module, name).__module__.startswith(new) for new in present)


def test_an_empty_folder_of_a_former_name_hides_nothing(tmp_path: Path) -> None:
    """Caches of compiled modules leave such folders behind in a checkout."""
    shutil.copytree(Path(ml.__file__).parent, tmp_path / "metalearn")
    (tmp_path / "metalearn" / "run" / "sweep").mkdir(exist_ok=True)
    code = "import metalearn.run.sweep as found; print(found.__file__ is not None)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_module_that_never_was_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"metalearn\.sweep\.nothing"):
        importlib.import_module("metalearn.run.sweep.nothing")
