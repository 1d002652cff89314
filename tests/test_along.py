"""Checkpoints along meta-training: tested on the same tasks, priced by what training had spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalearn as ml
from metalearn.cli.recommend import paragraph, recommendation
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.evaluate.decision.totals import Candidate, decide
from metalearn.report.figures.decision import map_text
from metalearn.results.break_even.decision_map import Candidates
from metalearn.results.break_even.recommendation import Question, recommend
from metalearn.results.costs import up_front_cost
from metalearn.results.records import load
from metalearn.storage import checkpoint
from metalearn.storage.files import read_json, read_npz

STEPS = (0, 1, 3)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    methods = {"maml": ml.algorithms.MAML(inner_lr=0.01), "scratch": ml.transfer.Scratch()}
    return ml.compare(
        methods,
        task=ml.tasks.Sinusoid(shots=5, queries=5),
        model=ml.models.MLP(sizes=(8,)),
        meta_steps=20,
        seeds=[0, 1, 2],
        run={"executor": "vmap", "validate": {"every": 10, "episodes": 4}, "keep_last": 1},
        evaluate={
            "episodes": 20,
            "steps": list(STEPS),
            "along": [0.25, 0.5],
            "target": {"metric": "loss", "value": 20.0},
        },
        out=tmp_path_factory.mktemp("along") / "run",
    )


def test_their_price_is_that_of_training_up_to_there(compared: Any) -> None:
    """Training grows evenly; the two validations are at steps 10 and 20."""
    run = load(compared.folder / "methods" / "maml" / "seed-0")
    assert {5, 10, 20} <= set(checkpoint.steps_in(run.path / "checkpoints"))
    train, tune = run.phase("meta_train")["flops"], run.phase("tune")["flops"]
    whole, rows = up_front_cost(run, "flops"), run.result["along"]
    assert whole == pytest.approx(train + tune) and tune > 0
    assert [row["step"] for row in rows] == [5, 10]
    spent = [whole - row["later"]["flops"] for row in rows]
    assert spent == pytest.approx([train / 4, train / 2 + tune / 2])
    assert all(0 < row["later"]["seconds"] < up_front_cost(run, "seconds") for row in rows)


def test_their_scores_are_those_of_their_states(compared: Any) -> None:
    run = compared.load("maml", 0)
    scores = read_npz(run.folder / "along.npz")["scores"]
    assert scores.shape == (2, 20)
    for row, step in zip(scores, (5, 10), strict=True):
        path = checkpoint.path_of(run.folder / "checkpoints", step)
        meta = checkpoint.load(path, run.state).meta
        curve = ml.evaluate.curves.learning_curve(run.method, meta, run.source, (0, 3), 20)
        np.testing.assert_allclose(row, curve.scores[:, -1].numpy(), rtol=1e-5)


def test_the_map_shows_the_envelope(compared: Any) -> None:
    shown = compared.data["decision_map"]
    assert shown["along"] == {"maml": [5, 10]}
    assert {name for part in shown["winner"] for row in part for name in row} <= {
        "maml",
        "scratch",
        None,
    }
    stops = np.asarray(shown["stops_after"], dtype=object)
    winner = np.asarray(shown["winner"], dtype=object)
    assert (stops[winner == "scratch"] == None).all()  # noqa: E711
    text = compared.decision_map()
    assert "maml" not in text or "also stopped after 5, 10 meta-steps" in text


def test_a_row_without_training_has_none(compared: Any) -> None:
    folder = compared.folder / "methods" / "scratch" / "seed-0"
    assert "along" not in read_json(folder / "result.json")
    assert not (folder / "along.npz").exists()


def choices() -> list[Candidate]:
    """A method with a cheaper, worse checkpoint, and a rival."""
    ones, solved = np.ones(3), np.ones((2, 3, 10), bool)
    early = solved.copy()
    early[1, :, 1:] = False  # the hard target needs all of the training
    return [
        Candidate("a", 1000 * ones, ones, 0 * ones, solved, "a"),
        Candidate("a", 100 * ones, ones, 0 * ones, early, "a", 10),
        Candidate("b", 500 * ones, 3 * ones, 0 * ones, solved, "b"),
    ]


def test_a_method_costs_what_its_cheapest_checkpoint_costs() -> None:
    found = decide(choices(), [1, 1000], [1])
    assert found.winner[0].tolist() == [[1, 1], [2, 0]]
    assert (found.share >= 0.95).all() and found.settled.all()
    alone = decide(choices()[1:], [1, 1000], [1])
    assert alone.winner[0].tolist() == [[0, 0], [1, 1]]


def test_a_recommendation_says_where_to_stop(tmp_path: Path, compared: Any) -> None:
    found, comparison = recommendation(compared.folder, "1000", "1", "1000.0", "flops")
    named = paragraph(found._replace(label="maml", step=5), comparison)
    assert "maml, stopped after 5 meta-steps, is the cheapest" in named


def crossing_choices() -> list[Candidate]:
    """1000 + n of `a`, 100 + 2 n of its checkpoint, 5000 + n / 2 of `b`."""
    ones, solved = np.ones(2), np.ones((1, 2, 10), bool)
    half = solved.copy()
    half[..., 5:] = False
    return [
        Candidate("a", 1000 * ones, ones, 0 * ones, solved, "a"),
        Candidate("a", 100 * ones, ones, 0 * ones, half, "a", 10),
        Candidate("b", 5000 * ones, 0.5 * ones, 0 * ones, solved, "b"),
    ]


@pytest.mark.parametrize(
    ("tasks", "label", "step"), [(1, "a", 10), (2000, "a", None), (9000, "b", None)]
)
def test_the_border_is_that_of_the_checkpoint_beside_it(
    monkeypatch: pytest.MonkeyPatch, tasks: int, label: str, step: int | None
) -> None:
    """The checkpoint would meet `b` at 3,267 tasks, where all of `a` is cheaper than both."""
    made = Candidates(crossing_choices(), {}, "")
    place = "metalearn.results.break_even.recommendation"
    monkeypatch.setattr(f"{place}.find_candidates", lambda *_: made)
    monkeypatch.setattr(f"{place}.target_grid", lambda *_: [0.9])
    asked = Question(tasks, 1, 0.9, "flops")
    found = recommend([], {"metric": "accuracy", "value": 0.9}, [], asked)
    assert (found.label, found.step) == (label, step)
    assert found.border is not None and found.border.value == pytest.approx(8000)


def test_the_runner_up_may_be_a_checkpoint(monkeypatch: pytest.MonkeyPatch, compared: Any) -> None:
    whole, early, rival = crossing_choices()
    cheap = rival._replace(up_front=np.zeros(2), adapt=3 * np.ones(2))
    made = Candidates([whole, early, cheap], {}, "")
    place = "metalearn.results.break_even.recommendation"
    monkeypatch.setattr(f"{place}.find_candidates", lambda *_: made)
    monkeypatch.setattr(f"{place}.target_grid", lambda *_: [0.9])
    asked = Question(1, 1, 0.9, "flops")
    found = recommend([], {"metric": "accuracy", "value": 0.9}, [], asked)
    assert (found.label, found.runner_up, found.runner_up_step) == ("b", "a", 10)
    assert "The runner-up is a, stopped after 10 meta-steps: " in paragraph(found, compared.data)


def test_the_map_as_text_marks_where_a_winner_stops() -> None:
    shown = {
        "axis": "flops",
        "metric": "accuracy",
        "tasks": [1, 3, 10, 30, 100],
        "targets": [0.9],
        "queries": [1],
        "as_tested": 1,
        "winner": [[["a", "a", "b", None, None]]],
        "settled": [[[True, False, True, False, True]]],
        "along": {"a": [5, 10]},
        "stops_after": [[[10, None, None, None, None]]],
    }
    text = map_text(shown).splitlines()
    assert text[2] == "  90 %  A2   a    B    ?    ."
    assert "A a, also stopped after 5, 10 meta-steps (A1, A2)" in text


def test_an_ensemble_has_no_price_along_its_training() -> None:
    section = {"along": [0.25], "checkpoint": "ensemble"}
    with pytest.raises(ConfigError, match="omit along, or use checkpoint: last or best"):
        parse({"task": {"source": "sinusoid"}, "evaluate": section})


def test_shares_lie_inside_the_training() -> None:
    section = {"along": [0.5, 0.25]}
    with pytest.raises(ConfigError, match=r"must be ascending fractions between 0 and 1"):
        parse({"task": {"source": "sinusoid"}, "evaluate": section})
    plain = parse({"task": {"source": "sinusoid"}}).experiments[0]
    off = parse({"task": {"source": "sinusoid"}, "evaluate": {"along": []}}).experiments[0]
    assert plain.hash() == off.hash()
