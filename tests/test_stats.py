"""Statistics against closed forms, against scipy, and against differences that were planted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metalearn.evaluate import stats
from metalearn.evaluate.statistics.students_t import t_quantile, two_sided_p


def test_ci95_is_the_closed_form() -> None:
    # 1, 2, 3, 4: variance 5/3 with n - 1; t(0.975, 3) = 3.18245
    half = 3.1824463 * math.sqrt(5 / 3) / 2
    assert stats.ci95([1.0, 2.0, 3.0, 4.0]) == pytest.approx(half)
    columns = stats.ci95([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    assert columns == pytest.approx([half, 0.0])
    assert np.isnan(stats.ci95([0.3]))


@pytest.mark.parametrize("tasks", [4, 20, 200])
def test_ci95_covers_the_true_mean_19_times_in_20(tasks: int) -> None:
    scores = np.random.default_rng(0).normal(0.7, 0.2, (tasks, 4000))
    covered = np.abs(scores.mean(0) - 0.7) <= stats.ci95(scores)
    assert 0.935 < covered.mean() < 0.96


def test_describe_never_drops() -> None:
    half = 12.7062047 * 0.1
    assert stats.describe([0.2, 0.4]) == (pytest.approx(0.3), pytest.approx(half), 2, 0)
    assert stats.describe([0.2, math.nan, math.inf]) == (None, None, 3, 2)
    assert stats.describe([]) == (None, None, 0, 0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 100, 999])
@pytest.mark.parametrize("probability", [0.025, 0.6, 0.95, 0.975, 0.995])
def test_t_quantiles_match_scipy(freedom: int, probability: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    assert t_quantile(probability, freedom) == pytest.approx(
        scipy_stats.t.ppf(probability, freedom), rel=1e-9
    )


def test_t_quantile_refuses_what_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="freedom"):
        t_quantile(0.975, 0)


def test_p_is_two_sided() -> None:
    for z in (0.5, 1.0, 2.0):  # without an end to the degrees of freedom: 2 (1 - Phi(z))
        assert two_sided_p(3 * z, 3.0, math.inf) == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert two_sided_p(-4.302652729749462, 1.0, 2) == pytest.approx(0.05)
    assert (two_sided_p(0.0, 0.0, 2), two_sided_p(0.1, 0.0, 2)) == (1, 0)


def test_seeds_interval() -> None:
    # two values: t(0.975, 1) = 12.7062, deviation |difference| / sqrt 2
    assert stats.seeds_ci95([0.5, 0.6]) == pytest.approx(12.7062047 * 0.1 / 2, rel=1e-6)
    assert stats.seeds_ci95([0.5]) is None
    assert stats.seeds_ci95([0.5, None, 0.6]) is None
    assert stats.seeds_ci95([0.5, math.inf]) is None


def test_seeds_interval_matches_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    values = [0.61, 0.64, 0.58, 0.66, 0.6]
    low, high = scipy_stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert stats.seeds_ci95(values) == pytest.approx((high - low) / 2)


def test_iqm_is_the_trimmed_mean() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(size=(3, 101))
    assert stats.iqm(values) == pytest.approx(scipy_stats.trim_mean(values.ravel(), 0.25))
    assert stats.iqm([0.0, 1.0, 2.0, 100.0]) == 1.5


def test_iqm_counts_an_undefined_score_as_the_worst() -> None:
    assert stats.iqm([1.0, 2.0, 3.0, math.nan], worst=math.inf) == 2.5
    assert stats.iqm([1.0, 2.0, 3.0, math.nan], worst=-math.inf) == 1.5
    assert stats.iqm([1.0, math.nan, math.nan, math.nan]) is None


def test_auc_of_lines() -> None:
    assert stats.auc([0, 10], [0.2, 0.6]) == pytest.approx(0.4)
    assert stats.auc([0, 1, 10], [0.5, 0.5, 0.5]) == pytest.approx(0.5)
    assert stats.auc([0, 1, 3], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 2) / 3)
    assert stats.auc(np.log2([1, 2, 4]), [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert stats.auc([5], [0.3]) == 0.3
    assert stats.auc([0, 1], [0.3, math.nan]) is None
    with pytest.raises(ValueError, match="ascending places"):
        stats.auc([1, 1], [0.3, 0.3])


def test_diverged_is_ten_times_the_start_or_not_finite() -> None:
    loss = [[1.0, 30.0, 1.0], [3.0, 19.9, math.nan], [2.0, 20.1, math.inf]]
    expected = [[False, True, False], [False, False, True], [False, True, True]]
    assert stats.diverged(loss).tolist() == expected
    assert stats.diverged([[math.nan, 1.0]]).tolist() == [[True, False]]
    assert stats.diverged([[1.0, 6.0]], start=0.5).tolist() == [[False, True]]
