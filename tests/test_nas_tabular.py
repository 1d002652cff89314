"""The tabular benchmark: rows equal to what a search computes, and exact statistics."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nas_tasks import Images, image_spec

from metalearn.errors import DataError
from metalearn.losses import accuracy
from metalearn.models import MLP
from metalearn.nas import Conv4Micro, Evolution, Halving, MLPReg, PerTaskNAS, RandomSearch
from metalearn.nas.spaces.space import Space, classes
from metalearn.nas.tabular import (
    Row,
    Table,
    empty,
    expected_pick,
    load,
    mean_architecture,
    measure,
    random_control,
    rank,
    regret,
    simulate,
    with_row,
)
from metalearn.nas.tabular import table as table_file
from metalearn.rng import fold_in
from metalearn.tasks import Sinusoid

POINTS = (1, 2, 4)


def made_up(tasks: int = 3, seeds: int = 2) -> tuple[Table, Space]:
    """A full table of random numbers: accuracy, and scores that agree with it in part."""
    space = Conv4Micro(filters=2).build(image_spec(), "query_batch")
    table = empty(space, PerTaskNAS(), POINTS, tasks, seeds, {"from": "nothing"})
    draw = np.random.default_rng(0)
    shape = (len(table.genotypes), tasks, seeds, len(POINTS))
    right = draw.uniform(size=shape).astype(np.float32)
    score = (right.mean(2) + 0.2 * draw.normal(size=right.mean(2).shape)).astype(np.float32)
    rows = Row(right, -right, score, np.full_like(score, 0.1))
    return dataclasses.replace(table, rows=rows, done=np.ones(shape[0], bool)), space


# rows


@pytest.mark.parametrize("shots", [1, 2])
def test_a_row_is_what_per_task_search_sees_and_gets(shots: int) -> None:
    """Score and error of a candidate, and accuracy of the winner on the same task, key by key."""
    source = Images(image_spec(shots))
    options = PerTaskNAS(
        space=Conv4Micro(filters=2), candidates=3, search_steps=4, standard_errors=0.0
    )
    episodes, keys = source.sample(fold_in(1), 2), fold_in(5, torch.arange(2))
    method = options.build(MLP(sizes=(4,), norm="query_batch").build(source.spec), source.spec)
    learned = method.learn({}, episodes.support, episodes.query.x, POINTS, key=keys)
    space = options.space.build(source.spec, "query_batch")
    for task in range(2):
        genotype = tuple(learned.notes["genotype"][task].tolist())
        row = measure(space, options, POINTS, 2, episodes, keys, genotype)
        assert row.score[task, -1] == pytest.approx(float(learned.notes["score"][task]), rel=1e-6)
        assert row.error[task, -1] == pytest.approx(
            float(learned.notes["score_error"][task]), rel=1e-5
        )
        truth = episodes.query.y[task].expand(len(POINTS), -1)
        wanted = accuracy(learned.predictions[task], truth, batch_dims=1).numpy()
        np.testing.assert_allclose(row.accuracy[task, 0], wanted, rtol=1e-6)
        assert row.accuracy.shape == row.loss.shape == (2, 2, 3) and row.score.shape == (2, 3)
        assert not np.allclose(row.loss[:, 0], row.loss[:, 1])  # another seed is another start


def test_shares_of_a_training_are_looked_up_where_halving_stops() -> None:
    """The score after a share of the steps is that of a search with so many steps."""
    source = Images(image_spec(2))
    space = Conv4Micro(filters=2).build(source.spec, "query_batch")
    episodes, keys = source.sample(fold_in(1), 2), fold_in(5, torch.arange(2))
    full, short = (
        measure(space, PerTaskNAS(), points, 1, episodes, keys, (3, 1, 2))
        for points in (POINTS, (2,))
    )
    np.testing.assert_allclose(full.score[:, 1], short.score[:, 0], rtol=1e-5)
    table, _ = made_up()
    for share, place in ((1.0, 2), (0.5, 1), (0.3, 0), (0.75, 1), (0.01, 0)):
        assert np.array_equal(table.scores(0, share)[0], table.rows.score[:, 0, place])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tables of the first 20 networks only: counting the cost of all 560 takes seconds."""
    whole = table_file.classes
    monkeypatch.setattr(table_file, "classes", lambda space: [*whole(space)[:19], space.default])
    return 20


def test_regression_counts_loss(few: int) -> None:
    source = Sinusoid(shots=4, queries=3).build(dtype=torch.float64)
    space = MLPReg().build(source.spec, "none")
    options = PerTaskNAS(space=MLPReg(), inner_lr=0.01)
    episodes = source.sample(fold_in(1), 3)
    keys = fold_in(2, torch.arange(3))
    table = empty(space, options, (1, 5), 3, 1, {})
    assert len(table.genotypes) == few and not table.complete
    wild = PerTaskNAS(space=MLPReg(), inner_lr=1e300)
    one = with_row(
        table,
        7,
        measure(space, options, (1, 5), 1, episodes, keys, tuple(map(int, table.genotypes[7]))),
    )
    both = with_row(
        one, 9, measure(space, wild, (1, 5), 1, episodes, keys, tuple(map(int, table.genotypes[9])))
    )
    assert both.done.nonzero()[0].tolist() == [7, 9] and np.isnan(both.rows.accuracy).all()
    np.testing.assert_allclose(both.truth()[7], -both.rows.loss[7, :, 0, -1])
    assert (
        both.truth()[[8, 9]] == -math.inf
    ).all()  # not trained; and of two networks one diverged at once
    assert both.unbounded and not one.unbounded and both.diverged == 0.5
    assert not table.done.any()  # a table is not written into
    assert not table.unbounded and table.diverged == 0 and (table.truth() == -math.inf).all()


# the file


def test_a_table_goes_through_its_file(tmp_path: Path) -> None:
    table, _ = made_up()
    path = tmp_path / "t.npz"
    path.write_bytes(table.save())
    again = load(path)
    assert again.header == table.header and again.points == POINTS and again.complete
    for name in ("genotypes", "params", "flops", "done"):
        assert np.array_equal(getattr(again, name), getattr(table, name))
    assert all(np.array_equal(a, b) for a, b in zip(again.rows, table.rows))
    with np.load(io.BytesIO(table.save()), allow_pickle=False) as file:
        assert set(file) == {"header", "genotypes", "params", "flops", "done", *Row._fields}
    assert {
        "space",
        "spec",
        "points",
        "training",
        "normalisation",
        "size",
        "classes",
        "from",
    } <= set(table.header)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a table"):
        load(path)
    with pytest.raises(DataError, match="not a table"):
        load(tmp_path / "absent.npz")
    table, _ = made_up()
    whole = table.save()
    for size in range(0, len(whole), len(whole) // 40):  # torn
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a table"):
            load(path)
    np.save(tmp_path / "one.npy", table.done)
    for header in ("[]", "3", "{}", "none"):
        np.savez(path, header=np.array(header))
        with pytest.raises(DataError, match="not a table"):
            load(path)
    with pytest.raises(DataError, match="not a table"):
        load(tmp_path / "one.npy")
    path.write_bytes(dataclasses.replace(table, header={**table.header, "schema": 9}).save())
    with pytest.raises(DataError, match="schema 9"):
        load(path)


# what it is for


def test_regret_and_rank_of_a_pick() -> None:
    table, space = made_up()
    values = table.rows.accuracy[..., -1].mean(-1)  # [G, T]
    best = classes(space)[int(values.mean(1).argmax())]
    assert regret(table, space, best) == 0 and rank(table, space, best) == 1
    worst = classes(space)[int(values[:, 2].argmin())]
    assert rank(table, space, worst, task=2) == len(values)
    assert regret(table, space, worst, task=2) == pytest.approx(np.ptp(values[:, 2]), rel=1e-6)
    dead_end = (0, 3, 3)  # its representative has no dead end
    assert rank(table, space, dead_end) == rank(table, space, space.canonical(dead_end))


def test_controls_are_those_of_random_picks() -> None:
    """One candidate is a random architecture; all with exact scores leave no regret."""
    table, _ = made_up()
    for task in (None, 1):
        assert random_control(table, 1, task) == pytest.approx(mean_architecture(table, task))
        exact = [random_control(table, draws, task, truth=True) for draws in (1, 2, 8, 32, 70)]
        assert exact == sorted(exact, reverse=True) and exact[-1] == pytest.approx(0, abs=1e-12)
        noisy = [random_control(table, draws, task) for draws in (1, 8, 70)]
        assert noisy[1] < noisy[0] and noisy[2] > 0.0


def test_random_searchs_regret_on_a_table_is_the_control() -> None:
    table, space = made_up()
    searcher = RandomSearch().build(space)
    found = [
        regret(table, space, simulate(table, space, searcher, fold_in(seed), 6, task=1), task=1)
        for seed in range(150)
    ]
    expected = random_control(table, 6, task=1)
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / math.sqrt(len(found))


@pytest.mark.parametrize("searcher", [Evolution(), Halving()])
def test_searchers_run_on_a_table(searcher: Any) -> None:
    table, space = made_up()
    picks = {
        simulate(table, space, searcher.build(space), fold_in(seed), 12, truth=True)
        for seed in range(3)
    }
    assert all(regret(table, space, pick) < mean_architecture(table) for pick in picks)
    lenient = simulate(table, space, searcher.build(space), fold_in(0), 12, standard_errors=3.0)
    strict = simulate(table, space, searcher.build(space), fold_in(0), 12, standard_errors=0.0)
    assert space.cost(lenient).flops <= space.cost(strict).flops


def losses() -> Table:
    """A full table of random losses that says it is of a regression."""
    table, _ = made_up()
    loss = np.random.default_rng(1).uniform(1, 2, size=table.rows.loss.shape).astype(np.float32)
    header = {**table.header, "spec": {**table.header["spec"], "kind": "regression"}}
    return dataclasses.replace(table, header=header, rows=table.rows._replace(loss=loss))


def test_what_diverged_counts_as_the_largest_loss_that_counts() -> None:
    """The cap is ten times the median at the first point; all numbers of a table are finite."""
    tame, space = losses(), made_up()[1]
    loss, score = tame.rows.loss.copy(), tame.rows.score.copy()
    loss[3, 1, 0, -1], loss[4, 2, 1, -1], loss[5, 0, :, 1:] = math.nan, 1e36, math.inf
    score[5, 0], score[6, 0], score[7, 1] = -math.inf, -math.inf, -1e30
    wild = dataclasses.replace(tame, rows=tame.rows._replace(loss=loss, score=score))
    cap = 10 * np.median(tame.rows.loss[..., 0].astype(np.float64), axis=(0, 2))
    np.testing.assert_allclose(wild.largest_loss[0, :, 0, 0], cap)
    good = wild.quality()
    assert [good[3, 1, 0, -1], good[4, 2, 1, -1], good[5, 0, 0, 1]] == pytest.approx(
        [-cap[1], -cap[2], -cap[0]]
    )
    same = np.isfinite(loss) & (loss < 1e30)
    assert np.array_equal(good[same], -loss[same])
    assert np.array_equal(tame.quality(), -tame.rows.loss)
    assert wild.diverged == pytest.approx(4 / loss[..., -1].size)
    assert tame.diverged == 0
    assert not wild.unbounded
    worst = tuple(map(int, wild.genotypes[5]))
    assert rank(wild, space, worst, task=0) == len(loss)
    assert regret(wild, space, worst, task=0) == pytest.approx(cap[0] + wild.values(0).max())
    for task in (None, 0, 1):
        numbers = [random_control(wild, 8, task), random_control(wild, 8, task, truth=True)]
        assert all(
            map(math.isfinite, (*numbers, mean_architecture(wild, task), *wild.scores(task)[1]))
        )
    picked = simulate(wild, space, RandomSearch().build(space), fold_in(0), 16, standard_errors=1.0)
    assert math.isfinite(regret(wild, space, picked))


def test_of_classes_only_what_is_not_finite_diverged() -> None:
    """Accuracy has a floor, so no loss is too large; what says nothing is right nowhere."""
    table, _ = made_up()
    right, loss = table.rows.accuracy.copy(), np.full_like(table.rows.loss, 1e30)
    right[2, 0, 0, -1], loss[2, 0, 0, -1], loss[2, 0, 1, -1] = math.nan, math.nan, math.inf
    wild = dataclasses.replace(table, rows=table.rows._replace(accuracy=right, loss=loss))
    assert wild.diverged == pytest.approx(2 / loss[..., -1].size) and not wild.unbounded
    assert wild.truth()[2, 0] == pytest.approx(right[2, 0, 1, -1] / 2)
    assert np.array_equal(np.delete(wild.quality(), 2, 0), np.delete(table.rows.accuracy, 2, 0))


def test_equal_scores_are_as_likely_to_be_picked() -> None:
    """The best of every order of draws, the first of equals; minus infinity is a valid score."""
    scores, values = np.array([0.3, -math.inf, 0.3, 0.1, -math.inf, -math.inf]), np.arange(6.0) ** 2
    for draws in (1, 2, 3, 4, 6):
        orders = list(itertools.permutations(range(6)))
        picks = [values[max(order[:draws], key=lambda row: scores[row])] for order in orders]
        assert expected_pick(scores, values, draws) == pytest.approx(np.mean(picks), rel=1e-12)
    assert expected_pick(np.zeros(6), values, 3) == pytest.approx(values.mean())


# the command

EXPERIMENT = """
experiment: tiny
task: {source: sinusoid, shots: 4, queries: 3}
model: {name: mlp, sizes: [4]}
method: {name: maml}
evaluate: {episodes: 10, seed: 3}
"""
