"""The race on a table: its numbers against the table's own functions and against theory, its picks,
its refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from messages import collect_messages
from nas_tasks import image_spec

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import fingerprint
from metalearn.models import MLP
from metalearn.nas import (
    DARTS,
    Conv4Micro,
    Evolution,
    MLPReg,
    OneShot,
    PerTaskNAS,
    Proxy,
    RandomSearch,
    tabular,
)
from metalearn.nas.searchers.search import Ask, Score, Trial
from metalearn.nas.spaces.space import Cost, Space, classes
from metalearn.nas.tabular import Row, Table, empty
from metalearn.rng import fold_in
from metalearn.tabular import race as race_program
from metalearn.tabular import race_results
from metalearn.tabular.race_options import RaceOptions, check
from metalearn.tabular.race_results import Landscape, curve, expectation, landscapes, raced, theory
from metalearn.tasks import Sinusoid

POINTS = (1, 2, 5)
SEED = 3
TASK = Sinusoid(shots=4, queries=3)
TASKS, SEEDS = 3, 2


def cheap(space: Space) -> Space:
    """The same space, but counting the cost of 560 networks takes no seconds."""
    return space._replace(cost=lambda genotype: Cost(1 + sum(genotype), 10 + 10 * sum(genotype)))


def filled(table: Table, noise: float) -> Table:
    """Numbers in which neighbours are alike, a little different from task to task; scores agree
    with them in part."""
    draw = np.random.default_rng(0)
    height = (
        np.sin(table.genotypes @ np.arange(1, table.genotypes.shape[1] + 1))
        + table.genotypes.sum(1) / 5
    )
    shape = (len(height), TASKS, SEEDS, len(POINTS))
    value = height[:, None, None, None] + 0.3 * draw.normal(size=shape)
    value = (value - value.min()) / np.ptp(value) * np.linspace(0.5, 1, len(POINTS))
    score = (value.mean(2) + noise * draw.normal(size=value.mean(2).shape)).astype(np.float32)
    rows = Row(
        value.astype(np.float32), (2 - value).astype(np.float32), score, np.full_like(score, 0.1)
    )
    return dataclasses.replace(table, rows=rows, done=np.ones(len(height), bool))


def waves(noise: float = 0.05, **facts: Any) -> Table:
    """A full table of mlp-reg whose header is that of real tasks."""
    source = TASK.build(split="test", seed=0)
    header: dict[str, Any] = {
        "task": TASK.model_dump(mode="json"),
        "split": "test",
        "data_sha256": "",
        "episodes_seed": SEED,
        "fingerprint": fingerprint(source, SEED),
        "dtype": "float32",
    }
    space = cheap(MLPReg().build(source.spec, "none"))
    options = PerTaskNAS(space=MLPReg(), inner_lr=0.01, folds=2)
    return filled(empty(space, options, POINTS, TASKS, SEEDS, header | facts), noise)


def images(noise: float = 0.05) -> tuple[Table, Space]:
    """A full table of conv4-micro that does not say what tasks it is of."""
    space = cheap(Conv4Micro(filters=2).build(image_spec(), "query_batch"))
    return filled(
        empty(space, PerTaskNAS(space=Conv4Micro(filters=2)), POINTS, TASKS, SEEDS, {}), noise
    ), space


def stored(folder: Path, table: Table) -> Path:
    path = folder / "t.npz"
    path.write_bytes(table.save())
    return path


@pytest.fixture(scope="module")
def wave_table() -> Table:
    return waves()


# curves


@pytest.mark.parametrize("searcher", [RandomSearch(), Evolution(population=4)])
def test_the_last_point_of_a_curve_is_what_the_table_says_of_a_simulated_search(
    searcher: Any,
) -> None:
    """Regret, rank and pick, in both reckonings; and the first point is the first candidate."""
    table, space = images()
    made, budget = searcher.build(space), 12
    for reckoning, lands in landscapes(table).items():
        picks = raced(table, space, made, lands, 2, race_results.counts(budget))
        found = curve(picks, lands, race_results.counts(budget))
        regret, rank = [], []
        for seed, number in itertools.product(range(2), range(len(lands))):
            task = None if reckoning == "truth" else number
            key = fold_in(seed, "race", number)
            pick = tabular.simulate(
                table, space, made, key, budget, task, truth=reckoning == "truth"
            )
            assert table.index(space, pick) == picks[seed, number, -1]
            regret.append(tabular.regret(table, space, pick, task))
            rank.append(tabular.rank(table, space, pick, task))
            assert (
                table.index(space, next(made(key, budget, None)).genotypes[0])
                == picks[seed, number, 0]
            )
        assert found["regret"][-1] == pytest.approx(np.mean(regret), abs=1e-6)
        assert found["rank"][-1] == pytest.approx(np.mean(rank))
        assert found["evaluations"] == [1, 2, 4, 8, 12] and len(found["at_budget"]) == 2


def test_halving_is_counted_in_full_trainings_and_told_what_it_paid_for() -> None:
    """Nine candidates at a ninth are one evaluation; the most trained count; a share shows the
    truth of then."""
    space = cheap(Conv4Micro(filters=2).build(image_spec(), "query_batch"))
    some = classes(space)[:12]
    trials = [Trial(one, 1 / 9, Score(float(place))) for place, one in enumerate(some[:9])]
    trials += [Trial(some[8], 1.0, Score(0.5)), Trial(some[3], 1.0, Score(0.7))]
    assert race_results.incumbents(space, trials, [1, 2, 3]) == [some[8], some[8], some[3]]
    table, _ = images()
    truth = landscapes(table)["truth"][0]
    early = table.rows.accuracy[..., 0].mean((1, 2))
    np.testing.assert_allclose(truth.scores(0.2), early, rtol=1e-5)
    np.testing.assert_allclose(truth.scores(1.0), truth.worth, rtol=1e-6)
    assert race_results.counts(64) == [1, 2, 4, 8, 16, 32, 64] and race_results.counts(1) == [1]


# theory


def landscape(scores: Any, worth: Any) -> Landscape:
    return Landscape(lambda share: np.asarray(scores, np.float64), np.asarray(worth, np.float64))


@pytest.mark.parametrize("scores", [[4, 1, 5, 3, 2, 6, 0], [1, 1, 2, -math.inf, -math.inf, 2, 2]])
def test_the_expectation_is_the_mean_over_all_orders(scores: list[float]) -> None:
    """Of every order of 7 networks, the first of the best of the first n: mean and variance; equals
    included."""
    worth = [0.1, 0.9, 0.4, 0.7, 0.2, 0.5, 0.3]
    land = landscape(scores, worth)
    for draws in (1, 2, 5, 7):
        picks = [
            max(order[:draws], key=lambda row: scores[row])
            for order in itertools.permutations(range(7))
        ]
        regret = 0.9 - np.array(worth)[picks]
        assert expectation(land, draws) == pytest.approx((regret.mean(), regret.var()), rel=1e-9)


def test_random_search_agrees_with_theory_and_who_cheats_does_not() -> None:
    """Simulated on the table it agrees; given other scores than theory knows, or drawn in order, it
    does not."""
    table, space = images()
    evaluations = race_results.counts(16)
    for lands in landscapes(table).values():
        picks = raced(table, space, RandomSearch().build(space), lands, 20, evaluations)
        found = theory(picks, lands, evaluations)
        assert found["agrees"] and found["exact"] == sorted(found["exact"], reverse=True)
        doctored = [landscape(-land.scores(1.0), land.worth) for land in lands]
        assert not theory(picks, doctored, evaluations)["agrees"]

    def in_order(key: Any, budget: int, data: Any = None) -> Any:
        yield Ask(tuple(classes(space)[:budget]))

    lands = landscapes(table)["scores"]
    picks = raced(table, space, in_order, lands, 20, evaluations)
    assert not theory(picks, lands, evaluations)["agrees"]


def test_a_race_says_that_theory_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A random search that knows the best network: shown on the terminal, as a warning and in what
    is returned."""
    table, _ = images()
    best = tuple(map(int, table.genotypes[table.values(None).argmax()]))

    def build(self: Any, space: Space) -> Any:
        def search(key: Any, budget: int, data: Any = None) -> Any:
            others = [one for one in classes(space) if one != best]
            yield Ask((best, *others[: budget - 1]))

        return search

    monkeypatch.setattr(RandomSearch, "build", build)
    messages = collect_messages()
    options = RaceOptions(stored(tmp_path, table), ("random",), budget=8, seeds=60)
    rows = {row["reckoning"]: row for row in race_program.race(options)["curves"]}
    assert rows["truth"]["agrees"] is False and rows["truth"]["regret"] == [0.0] * 4
    assert "DOES NOT lie within" in capsys.readouterr().out
    assert any("not what theory says" in text for text in messages)


# against random search


def test_verdicts_follow_the_rule() -> None:
    draw = np.random.default_rng(0)
    random = 0.5 + 0.1 * draw.normal(size=20)
    for shift, verdict in ((-0.2, "better"), (0.2, "worse"), (0.0, "not worse")):
        found = race_results.paired(
            random + shift + 0.05 * draw.normal(size=20), random, exact=0.4, chance_regret=1.0
        )
        low, high = found["ci95"]
        assert found["verdict"] == verdict and low < found["difference"] < high
        assert found["difference"] == pytest.approx(found["regret"] - found["random"])
        assert found["over_exact"] == pytest.approx(found["regret"] - 0.4)
        assert found["over_exact_ci95"] > 0
    # surely above 0, and below the tolerance
    small = race_results.paired(random + 0.009, random, 0.5, chance_regret=1.0)
    assert small["verdict"] == "not worse" and small["ci95"][0] > 0
    assert race_results.paired(random + 0.011, random, 0.5, chance_regret=1.0)["verdict"] == "worse"
    assert race_results.paired(random, random, 0.5, chance_regret=1.0)["ci95"] == [0, 0]
    assert "not worse" in race_results.RULE


# what diverged


def test_what_diverged_makes_no_regret_infinite(wave_table: Table) -> None:
    """Told and worth the largest loss that counts, in both reckonings."""
    loss = wave_table.rows.loss.copy()
    loss[3, 1, 0, -1], loss[4, 2, 1, -1], loss[5, 0, :, 1:] = math.nan, 1e30, math.inf
    wild = dataclasses.replace(wave_table, rows=wave_table.rows._replace(loss=loss))
    fields = landscapes(wild)
    assert all(np.isfinite(land.regret).all() for lands in fields.values() for land in lands)
    assert np.isfinite(fields["truth"][0].scores(1.0)).all()
    assert math.isfinite(race_results.noise(wild)["tau"])
    assert fields["scores"][2].worth[4] == pytest.approx(
        -(wild.largest_loss[0, 2, 0, 0] + loss[4, 2, 0, -1]) / 2
    )


# searchers that train


@pytest.mark.parametrize(
    ("name", "sets", "searcher"),
    [
        ("darts", {"steps": 3, "lr": 0.01}, DARTS(steps=3, lr=0.01)),
        ("darts-first-order", {"steps": 2}, DARTS(steps=2, first_order=True)),
        ("one-shot", {"steps": 2, "pool": 4}, OneShot(steps=2, pool=4)),
        ("snip", {"pool": 3}, Proxy(measure="snip", pool=3)),
    ],
)
def test_a_pick_is_that_of_per_task_search(
    name: str, sets: dict[str, Any], searcher: Any, tmp_path: Path, wave_table: Table
) -> None:
    """Task for task, when the evaluator hands per-task search the same episodes; its place is the
    table's."""
    texts = [f"{name}.{field}={value}" for field, value in sets.items()]
    found = race_program.race(
        RaceOptions(stored(tmp_path, wave_table), (name,), texts, budget=4, seeds=2)
    )
    (row,) = found["picks"]
    assert found["curves"] == found["paired"] == []
    source = TASK.build(split="test", seed=0)
    options = PerTaskNAS(
        space=MLPReg(),
        searcher=searcher,
        candidates=4,
        inner_lr=0.01,
        folds=2,
        search_steps=1,
        standard_errors=0.0,
    )
    method = options.build(MLP(sizes=(4,)).build(source.spec), source.spec)
    episodes = source.sample(fold_in(SEED, "episodes"), TASKS)
    keys = fold_in(episodes.info["key"], "learn")
    learned = method.learn({}, episodes.support, episodes.query.x, (1,), key=keys)
    assert [place["genotype"] for place in row["tasks"]] == learned.notes["genotype"].tolist()
    space = cheap(MLPReg().build(source.spec, "none"))
    for place in row["tasks"]:
        pick, task = tuple(place["genotype"]), place["task"]
        assert place["rank"] == tabular.rank(wave_table, space, pick, task)
        assert place["regret"] == pytest.approx(
            tabular.regret(wave_table, space, pick, task), abs=1e-6
        )
        assert place["shared"]["rank"] == tabular.rank(wave_table, space, pick)
        assert 0 <= place["percentile"] <= 100 and "activation" in place["words"]
    assert row["rank"] == pytest.approx(np.mean([place["rank"] for place in row["tasks"]]))
    controls = [tabular.random_control(wave_table, 4, task) for task in range(TASKS)]
    assert row["random_at_budget"] == pytest.approx(np.mean(controls), rel=1e-5)
    blind = [tabular.mean_architecture(wave_table, task) for task in range(TASKS)]
    assert row["chance"] == pytest.approx(np.mean(blind), rel=1e-5)


def test_other_tasks_than_the_tables_are_refused(tmp_path: Path, wave_table: Table) -> None:
    """Nothing is trained on tasks that the truth is not of; searchers that need none still race."""
    header = wave_table.header
    wrong = [
        ({"task": {**header["task"], "noise": 0.1}}, "other tasks"),
        ({"episodes_seed": SEED + 1}, "other tasks"),
        ({"task": {**header["task"], "nose": 0.1}}, "unknown key"),
        ({"task": {"source": "waves"}}, "'waves'"),
        ({"training": {"space": {"name": "mlp-rag"}}}, "cannot be read"),
        (
            {"training": {**header["training"], "space": {"name": "conv4-micro"}}},
            "x_shape|images|inputs",
        ),
    ]
    for facts, text in wrong:
        path = stored(tmp_path, dataclasses.replace(wave_table, header={**header, **facts}))
        with pytest.raises(ConfigError, match=text):
            check(RaceOptions(path, ("darts",)))
    path = stored(tmp_path, dataclasses.replace(wave_table, header={**header, "fingerprint": "0"}))
    assert check(RaceOptions(path, ("evolution",))).tasks is None
    table, _ = images()
    with pytest.raises(ConfigError, match="header lacks task, split"):
        check(RaceOptions(stored(tmp_path, table), ("random", "jacob_cov")))
    few = dataclasses.replace(table, genotypes=table.genotypes[::-1] * 0)
    with pytest.raises(ConfigError, match="not the 70 of conv4-micro"):
        check(RaceOptions(stored(tmp_path, few), ("random",)))


# noise


def test_noise_is_tau_between_score_and_truth_and_its_ceiling(wave_table: Table) -> None:
    loss = wave_table.rows.loss.copy()
    loss[:, :, 1] = loss[:, :, 0]
    sure = dataclasses.replace(
        wave_table,
        rows=wave_table.rows._replace(
            loss=loss, score=-loss[:, :, 0], accuracy=np.full_like(loss, np.nan)
        ),
    )
    found = race_results.noise(sure)
    assert found["tau"] == found["one_seed"] == found["ceiling"] == 1 and found["tau_ci95"] == 0
    assert found["regret_of_best_score"] == pytest.approx(0, abs=1e-7)
    noisy = race_results.noise(wave_table)
    assert 0 < noisy["one_seed"] < noisy["tau"] < 1
    assert 0 < noisy["ceiling"] < 1
    assert 0 < noisy["between_tasks"] < 1
    one = wave_table.rows._replace(loss=wave_table.rows.loss[:, :, :1])
    assert race_results.noise(dataclasses.replace(wave_table, rows=one))["ceiling"] is None
