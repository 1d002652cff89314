"""Searchers: their requests, the scores they get, and their worth."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from nas_tasks import Images, hill, image_spec, numbers_space

from metalearn.nas import SEARCHERS, TPE, Conv4Micro, Evolution, Halving, RandomSearch
from metalearn.nas.fit import divide
from metalearn.nas.searchers.search import Ask, Data, Score, Trial, choose, run_search, run_searches
from metalearn.nas.spaces.space import Genotype, classes
from metalearn.nas.tabular import expected_pick
from metalearn.rng import fold_in
from metalearn.types import Batch, EpisodeSpec, NullLedger

SIZES = (4, 4, 4, 4)
HILLY = numbers_space(SIZES)
NEED_DATA = {"darts", "one-shot"}


def data_of(spec: EpisodeSpec, seed: int = 0) -> Data:
    support = Images(spec).sample(fold_in(seed), 1).support
    folds = divide(spec, Batch(support.x[0], support.y[0]), fold_in(seed, "folds"), 5, 2)
    return Data(folds, NullLedger())


def hilly(genotype: Genotype, share: float = 1.0) -> Score:
    return Score(hill(genotype, SIZES))


def regrets(searcher: Any, budget: int, seeds: int) -> np.ndarray:
    """What each seed's best candidate lacks of the landscape's top."""
    top = max(hill(genotype, SIZES) for genotype in classes(HILLY))
    found = []
    for seed in range(seeds):
        trials = run_search(
            searcher.build(HILLY)(fold_in(seed, "search"), budget, None), hilly, budget
        )
        assert len({trial.genotype for trial in trials}) == len(trials) == budget
        found.append(top - max(trial.score.value for trial in trials))
    return np.array(found)


# the protocol


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_keeps_the_protocol(name: str) -> None:
    """It asks first, gets values, respects its budget, ends, and is a function of its key."""
    spec = image_spec(2)
    space, data = Conv4Micro(filters=2).build(spec, "query_batch"), data_of(spec)
    options = {
        "darts": {"steps": 2},
        "one-shot": {"steps": 3, "pool": 5},
        "proxy": {"pool": 9},
    }.get(name, {})
    searcher = SEARCHERS[name](**options).build(space)  # type: ignore[attr-defined]
    values = {genotype: float(np.sin(7 * sum(genotype))) for genotype in classes(space)}

    def score(genotype: Genotype, share: float) -> Score:
        assert space.canonical(genotype) == genotype and 0 < share <= 1
        return Score(values[genotype])

    runs = [run_search(searcher(fold_in(seed, "s"), 6, data), score, 6) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] and runs[0]
    assert max(trial.share for trial in runs[0]) == 1.0
    if name not in NEED_DATA | {"proxy"}:
        assert runs[0] != runs[2]
    first = next(searcher(fold_in(0, "s"), 6, data))
    assert isinstance(first, Ask) and first.genotypes


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_is_a_component(name: str) -> None:
    made = SEARCHERS[name]()
    assert made.name == name and SEARCHERS[name].model_validate_json(made.model_dump_json()) == made  # type: ignore[attr-defined]
    assert all(info.description for info in SEARCHERS[name].model_fields.values())


@pytest.mark.parametrize("name", sorted(NEED_DATA))
def test_searchers_that_train_say_so_to_a_table(name: str) -> None:
    with pytest.raises(ValueError, match="needs data"):
        next(SEARCHERS[name]().build(HILLY)(fold_in(0), 4, None))  # type: ignore[attr-defined]


def test_a_whole_space_is_searched_and_left() -> None:
    """A budget above the number of classes ends with all of them, each once."""
    small = numbers_space((2, 3))
    for searcher in (RandomSearch(), Evolution(), TPE()):
        trials = run_search(
            searcher.build(small)(fold_in(0), 50, None), lambda g, s: Score(float(sum(g))), 50
        )
        assert sorted(trial.genotype for trial in trials) == classes(small)


def test_searches_side_by_side_hear_only_of_themselves() -> None:
    """Values by task in the order asked; repeated requests are answered from memory at no cost."""
    answers: list[Any] = []

    def search(task: int) -> Any:
        answers.append((task, (yield Ask(((0, 0), (0, 1))))))
        answers.append((task, (yield Ask(((0, 1),), 1.0 if task else 0.5))))

    requests = []

    def judge(jobs: Any) -> Any:
        requests.append(list(jobs))
        return [Score(100 * task + 10 * genotype[1] + share) for task, genotype, share in jobs]

    trials = run_searches([search(0), search(1)], judge, budget=3)
    assert answers == [(0, [1.0, 11.0]), (1, [101.0, 111.0]), (0, [10.5]), (1, [111.0])]
    assert requests == [
        [(0, (0, 0), 1.0), (0, (0, 1), 1.0), (1, (0, 0), 1.0), (1, (0, 1), 1.0)],
        [(0, (0, 1), 0.5)],
    ]
    assert [len(one) for one in trials] == [3, 2]


def test_a_searcher_that_asks_for_more_than_its_budget_is_stopped() -> None:
    def greedy() -> Any:
        yield Ask(tuple(classes(HILLY)[:5]))

    run_search(greedy(), hilly, 5)
    with pytest.raises(RuntimeError, match="budget of 4"):
        run_search(greedy(), hilly, 4)


def test_the_cheapest_within_one_standard_error_wins() -> None:
    """Cost of a genotype here: ten times the sum of its numbers."""
    trials = [
        Trial((3, 3), 1.0, Score(-1.0, 0.2)),
        Trial((1, 2), 1.0, Score(-1.15, 9.0)),  # within 0.2 of the best, and cheapest of those
        Trial((2, 2), 1.0, Score(-1.1, 0.0)),
        Trial((0, 0), 1.0, Score(-1.21, 9.0)),  # just outside
        Trial((0, 1), 0.5, Score(-0.1, 9.0)),  # not fully trained
        Trial((0, 2), 1.0, Score(-math.inf, 0.0)),
    ]
    space = numbers_space((4, 4))
    assert choose(space, trials, 1.0).genotype == (1, 2)
    assert choose(space, trials, 0.4).genotype == (3, 3)
    assert choose(space, trials, 0.0).genotype == (3, 3)
    assert choose(space, trials, 1.06).genotype == (0, 0)
    assert choose(space, [trials[5]], 1.0).genotype == (0, 2)
    assert choose(space, [trials[4]], 1.0).genotype == (0, 1)


# random search and theory


def test_the_expected_pick_is_the_mean_over_all_draws() -> None:
    """Against every subset: best by score, valued by truth; with equal numbers the largest of n."""
    draw = np.random.default_rng(0)
    scores, values = draw.normal(size=8), draw.normal(size=8)
    for draws in (1, 3, 7, 8):
        subsets = list(itertools.combinations(range(8), draws))
        for given in (scores, values):
            picks = [
                values[max(subset, key=lambda place, given=given: given[place])]
                for subset in subsets
            ]
            assert expected_pick(given, values, draws) == pytest.approx(np.mean(picks), rel=1e-12)
    assert expected_pick(values, values, 50) == pytest.approx(values.max())


def test_the_regret_of_random_search_falls_as_theory_says() -> None:
    """Mean over seeds against the expected largest of n of 256, within 4 standard errors."""
    values = np.array([hill(genotype, SIZES) for genotype in classes(HILLY)])
    last = math.inf
    for budget in (1, 4, 16, 64):
        found = regrets(RandomSearch(), budget, 120)
        theory = values.max() - expected_pick(values, values, budget)
        assert abs(found.mean() - theory) < 4 * found.std() / math.sqrt(len(found)), (
            budget,
            found.mean(),
            theory,
        )
        assert theory < last
        last = theory


# evolution, TPE, halving


@pytest.mark.parametrize(("searcher", "seeds"), [(Evolution(), 20), (TPE(), 6)])
def test_where_neighbours_are_alike_learning_from_them_pays(searcher: Any, seeds: int) -> None:
    """Mean regret below that of random search at the same budget, by over 2 standard errors."""
    values = np.array([hill(genotype, SIZES) for genotype in classes(HILLY)])
    found = regrets(searcher, 48, seeds)
    random = values.max() - expected_pick(values, values, 48)
    assert found.mean() + 2 * found.std() / math.sqrt(seeds) < random, (found.mean(), random)


def test_evolution_takes_parents_from_the_living_and_lets_the_oldest_die() -> None:
    """With a sample of the whole population each child is one mutation from its best member."""
    population, budget = 4, 24
    searcher = Evolution(population=population, sample=population).build(HILLY)
    trials = run_search(searcher(fold_in(3), budget, None), hilly, budget)
    near = 0
    for born in range(population, budget):
        parent = max(trials[born - population : born], key=lambda trial: trial.score.value).genotype
        differs = sum(a != b for a, b in zip(trials[born].genotype, parent))
        known = {trial.genotype for trial in trials[:born]}
        neighbours = {g for g in classes(HILLY) if sum(a != b for a, b in zip(g, parent)) == 1}
        # further only past what is known
        assert differs == 1 or (neighbours & known), (born, differs)
        near += differs == 1
    assert near >= 15


@pytest.mark.parametrize("budget", [1, 2, 3, 8, 16, 40])
def test_halving_spends_its_budget_and_no_more(budget: int) -> None:
    for options in ({}, {"factor": 2, "rungs": 4}, {"rungs": 1}):
        plan = Halving(**options).plan(budget)  # type: ignore[arg-type]
        spent = sum(size * share for size, share in plan)
        assert plan[-1][1] == 1.0 and spent <= budget + 1e-9
        first = plan[0][0] + 1
        eta = options.get("factor", 3)
        more = sum(max(1, first // eta**rung) * share for rung, (_, share) in enumerate(plan))
        assert more > budget


def test_halving_lets_the_best_of_a_whole_rung_go_on() -> None:
    asks: list[Ask] = []
    search = Halving(factor=3, rungs=3).build(HILLY)(fold_in(1), 9, None)
    ask = next(search)
    with pytest.raises(StopIteration):
        while True:
            asks.append(ask)
            ask = search.send([hill(genotype, SIZES) for genotype in ask.genotypes])
    assert [ask.share for ask in asks] == [1 / 9, 1 / 3, 1.0]
    for before, after in itertools.pairwise(asks):
        best = sorted(before.genotypes, key=lambda genotype: -hill(genotype, SIZES))[
            : len(after.genotypes)
        ]
        assert list(after.genotypes) == best
    assert [len(ask.genotypes) for ask in asks] == [size for size, _ in Halving().plan(9)]
