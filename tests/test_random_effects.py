"""Means over seeds and tasks: closed forms, special cases, and differences that were planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from metalearn.evaluate import stats
from metalearn.evaluate.random_effects import (
    estimate,
    interval,
    mean_squares,
    paired,
    ratio_interval,
    standard_error,
)
from metalearn.evaluate.statistics.holm import holm


def table(seeds: int, tasks: int, key: int = 0) -> np.ndarray:
    generator = np.random.default_rng(key)
    rows, columns = generator.normal(0, 1, seeds), generator.normal(0, 2, tasks)
    return rows[:, None] + columns + generator.normal(0, 1, (seeds, tasks))


def half_width(found: object) -> float:
    low, high = found.ci95  # type: ignore[attr-defined]
    return float(high - low) / 2


def test_mean_squares_add_up_to_the_whole_spread() -> None:
    """Sums of squares of seeds, tasks and residual are those around the mean."""
    values = table(4, 7)
    found = mean_squares(values)
    whole = 3 * found.seeds + 6 * found.tasks + 18 * found.residual
    assert whole == pytest.approx(((values - values.mean()) ** 2).sum())
    assert found.seeds == pytest.approx(7 * values.mean(1).var(ddof=1))
    trailing = mean_squares(np.stack([values, 2 * values], -1))
    assert trailing.tasks == pytest.approx([found.tasks, 4 * found.tasks])


def test_the_interval_is_the_published_formula() -> None:
    values = table(3, 40)
    squares, found = mean_squares(values), estimate(values)
    whole = squares.seeds + squares.tasks - squares.residual
    whole = max(whole, squares.seeds, squares.tasks)
    freedom = whole**2 / (squares.seeds**2 / 2 + squares.tasks**2 / 39 + squares.residual**2 / 78)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(whole / 120)
    assert found.freedom == pytest.approx(freedom) and half_width(found) == pytest.approx(half)
    assert found.value == pytest.approx(values.mean())
    assert found.per_seed == pytest.approx(values.mean(1))
    both = values.mean() / math.sqrt(whole / 120)
    seeds = values.mean() / math.sqrt(squares.seeds / 120)
    tails = scipy.stats.t.sf([abs(both), abs(seeds)], [math.sqrt(2 * freedom), 2])
    assert found.p == pytest.approx(2 * max(tails))


def test_without_an_effect_of_tasks_it_is_the_interval_over_seeds() -> None:
    shifted = np.zeros((3, 400)) + np.array([[-0.1], [0.0], [0.1]])
    found = estimate(shifted)
    assert half_width(found) == pytest.approx(stats.seeds_ci95([-0.1, 0.0, 0.1]))
    assert found.freedom == pytest.approx(2)


def test_without_an_effect_of_seeds_it_is_the_interval_over_tasks() -> None:
    """The same tasks under three seeds are not three times as many."""
    tasks = np.random.default_rng(4).normal(0, 1, 300)
    found = estimate(np.tile(tasks, (3, 1)))
    assert half_width(found) == pytest.approx(float(stats.ci95(tasks)))


def test_one_seed_gives_an_interval_over_tasks_and_no_test() -> None:
    values = table(1, 50)
    found = estimate(values)
    assert half_width(found) == pytest.approx(float(stats.ci95(values[0])))
    assert found.p is None and "these trained networks only" in found.covers
    assert estimate(table(2, 50)).p is None and estimate(table(3, 50)).p is not None
    assert estimate(table(3, 50)).covers == "new seeds and tasks"
    one_task = estimate([[0.1], [0.2], [0.4]])
    assert half_width(one_task) == pytest.approx(stats.seeds_ci95([0.1, 0.2, 0.4]))
    assert estimate([[0.3]]).ci95 is None


def test_the_interval_of_every_point_of_a_curve() -> None:
    values = np.stack([table(3, 30, key) for key in range(2)], -1)
    low, high = interval(values)
    for point in range(2):
        assert estimate(values[..., point]).ci95 == pytest.approx((low[point], high[point]))
    values[0, 0, 1] = math.nan
    assert np.isnan(interval(values)[0]).tolist() == [False, True]
    assert np.isnan(interval(np.zeros((1, 1, 2)))).all()


def test_a_planted_difference_is_found_and_is_antisymmetric() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0.6, 0.15, 600)  # shared by both methods: pairing removes it
    first = hard + 0.01 + generator.normal(0, 0.05, (5, 600))
    second = hard + generator.normal(0, 0.05, (5, 600))
    found, backward = paired(first, second), paired(second, first)
    assert found.value == pytest.approx((first - second).mean())
    assert found.ci95 is not None and 0 < found.ci95[0] < 0.01 < found.ci95[1] < 0.02
    assert found.p is not None and found.p < 0.01 and backward.p == pytest.approx(found.p)
    assert backward.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))
    # by eye, the two intervals overlap: pairing is what finds it
    assert first.mean() - second.mean() < stats.ci95(first.mean(0)) + stats.ci95(second.mean(0))


def test_no_difference_at_all() -> None:
    same = np.full((3, 50), 0.4)
    found = paired(same, same)
    assert (found.value, found.ci95, found.p) == (0.0, (0.0, 0.0), 1.0)
    assert paired(same + 0.25, same).p == 0.0
    assert float(standard_error(same)[0]) == pytest.approx(0, abs=1e-15)
    assert [float(part) for part in standard_error(0 * same)] == [0.0, math.inf]


def test_undefined_scores_are_counted_and_other_shapes_refused() -> None:
    broken = np.zeros((2, 5))
    broken[1, 3] = math.nan
    found = paired(broken, np.zeros((2, 5)))
    assert (found.value, found.ci95, found.p, found.undefined) == (None, None, None, 1)
    assert paired(np.full((1, 2), math.inf), np.full((1, 2), math.inf)).undefined == 2
    with pytest.raises(ValueError, match="same shape"):
        paired(np.zeros((2, 5)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="table"):
        estimate(np.zeros(5))


def test_holm_is_the_published_procedure() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06)]
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(ValueError, match="must be in"):
        holm([1.5])


def test_two_seeds_have_an_interval_over_tasks_alone() -> None:
    """Over new seeds it would cover 89 %."""
    values = table(2, 50)
    found = estimate(values)
    assert half_width(found) == pytest.approx(float(stats.ci95(values.mean(0))))
    assert found.covers == "new tasks, these trained networks only" and found.p is None
    assert interval(values) == pytest.approx(found.ci95)


@pytest.mark.parametrize(("seeds", "ratio"), [(3, 1.8), (5, 1.8), (5, 4.0), (10, 1.8)])
def test_the_interval_of_a_ratio_has_the_variance_of_both(seeds: int, ratio: float) -> None:
    """The interval of the difference over the mean of the base covered .87, .80 and .48."""
    generator, repeats, covered = np.random.default_rng([6, seeds]), 150, 0
    for _ in range(repeats):
        tasks = generator.normal(0, 0.05, 100)
        drawn = [generator.normal(0, sd, seeds)[:, None] for sd in (0.01, 0.07)]
        noise = generator.normal(0, 0.09, (2, seeds, 100))
        ends = ratio_interval(
            0.5 * ratio + drawn[0] + tasks + noise[0], 0.5 + drawn[1] + tasks + noise[1]
        )
        covered += ends is None or ends[0] <= ratio <= ends[1]
    assert covered / repeats >= 0.92 - 2 * math.sqrt(0.92 * 0.08 / repeats)


def test_a_ratio_to_what_may_be_zero_has_no_interval() -> None:
    values = table(3, 40)
    assert ratio_interval(values, values - values.mean()) is None
    assert ratio_interval(values + 9, values + 9) == pytest.approx((1.0, 1.0), abs=1e-5)
    exact = ratio_interval(np.full((3, 9), 3.0), np.full((3, 9), 2.0))
    assert exact == pytest.approx((1.5, 1.5), abs=1e-5)
