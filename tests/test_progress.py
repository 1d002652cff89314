"""Progress of training: a bar in a notebook, lines elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from messages import collect_messages

import metalearn as ml
from metalearn.run import progress
from metalearn.run.progress import Progress


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A kernel's display, and what it was given."""
    shown: list[Any] = []

    def display(found: Any, *, display_id: bool) -> Any:
        assert display_id
        shown.append(found)
        return SimpleNamespace(update=shown.append)

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    displays.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    monkeypatch.setattr(progress, "REDRAW_EVERY", 0.0)
    return shown


def test_a_notebook_has_a_bar_that_goes_away(notebook: list[Any]) -> None:
    with Progress("maml <0>", 100, 20) as bar:
        bar.at(60, "query loss 0.5")
        bar.at(70)
    texts = [one._repr_html_() for one in notebook]
    assert '<progress value="20" max="100">' in texts[0] and "maml &lt;0&gt;: 20/100" in texts[0]
    assert '<progress value="60" max="100">' in texts[1] and "query loss 0.5" in texts[1]
    assert texts[-1] == "" and repr(notebook[-1]) == ""
    assert repr(notebook[2]).startswith("maml <0>: 70/100, ")


def test_training_in_a_notebook_shows_its_metrics(notebook: list[Any], tmp_path: Path) -> None:
    ml.train(
        ml.algorithms.MAML(),
        task=ml.tasks.Sinusoid(shots=3),
        model=ml.models.MLP(sizes=(4,)),
        meta_steps=3,
        episodes=4,
        steps=(0, 1),
        run={"log_every": 1, "executor": "vmap"},
        out=tmp_path / "run",
    )
    texts = [repr(one) for one in notebook]
    assert texts[0].startswith("maml seed 0: 0/3") and texts[-1] == ""
    assert any("3/3" in text and "query_loss" in text for text in texts)


def test_elsewhere_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    lines = collect_messages()
    with Progress("maml", 10) as bar:
        bar.at(5, "query loss 0.5")
    assert len(lines) == 1 and lines[0].startswith("maml: 5/10, ") and "query loss" in lines[0]


def test_another_process_than_the_first_shows_no_bar(notebook: list[Any]) -> None:
    with Progress("maml", 10, show=False) as bar:
        bar.at(5)
    assert notebook == []
