"""Statistics against closed forms, against scipy, and against differences that were planted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metalearn.evaluate import stats


def test_ci95_is_the_closed_form() -> None:
    # 1, 2, 3, 4: variance 5/3 with n - 1
    assert stats.ci95([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1.96 * math.sqrt(5 / 3) / 2)
    columns = stats.ci95([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    assert columns == pytest.approx([1.96 * math.sqrt(5 / 3) / 2, 0.0])
    assert np.isnan(stats.ci95([0.3]))


def test_ci95_covers_the_true_mean_19_times_in_20() -> None:
    scores = np.random.default_rng(0).normal(0.7, 0.2, (200, 4000))
    covered = np.abs(scores.mean(0) - 0.7) <= stats.ci95(scores)
    assert 0.935 < covered.mean() < 0.96


def test_describe_never_drops() -> None:
    assert stats.describe([0.2, 0.4]) == (pytest.approx(0.3), pytest.approx(1.96 * 0.1), 2, 0)
    assert stats.describe([0.2, math.nan, math.inf]) == (None, None, 3, 2)
    assert stats.describe([]) == (None, None, 0, 0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 100, 999])
@pytest.mark.parametrize("probability", [0.025, 0.6, 0.95, 0.975, 0.995])
def test_t_quantiles_match_scipy(freedom: int, probability: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    assert stats.t_quantile(probability, freedom) == pytest.approx(
        scipy_stats.t.ppf(probability, freedom), rel=1e-9
    )


def test_t_quantile_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="freedom"):
        stats.t_quantile(0.975, 0)


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
    with pytest.raises(ValueError, match="rise"):
        stats.auc([1, 1], [0.3, 0.3])


def test_diverged_is_ten_times_the_start_or_not_finite() -> None:
    loss = [[1.0, 30.0, 1.0], [3.0, 19.9, math.nan], [2.0, 20.1, math.inf]]
    assert stats.diverged(loss).tolist() == [
        [False, True, False],
        [False, False, True],
        [False, True, True],
    ]
    assert stats.diverged([[math.nan, 1.0]]).tolist() == [[True, False]]
    assert stats.diverged([[1.0, 6.0]], start=0.5).tolist() == [[False, True]]


def _planted(effect: float, seeds: int = 3, tasks: int = 600) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    hard = generator.normal(0.6, 0.15, tasks)  # shared by both methods: pairing removes it
    first = hard + effect + generator.normal(0, 0.05, (seeds, tasks))
    return first, hard + generator.normal(0, 0.05, (seeds, tasks))


def test_paired_finds_a_planted_difference() -> None:
    first, second = _planted(0.01)
    found = stats.paired(first, second, seed=0)
    assert found.difference == pytest.approx((first - second).mean())
    assert found.ci95 is not None and 0 < found.ci95[0] < 0.01 < found.ci95[1] < 0.02
    assert found.p is not None and found.p < 0.01
    # by eye, the two intervals overlap: pairing is what finds it
    assert first.mean() - second.mean() < stats.ci95(first.mean(0)) + stats.ci95(second.mean(0))


def test_paired_is_antisymmetric_and_repeats() -> None:
    first, second = _planted(0.01)
    forward, backward = stats.paired(first, second, seed=3), stats.paired(second, first, seed=3)
    assert forward == stats.paired(first, second, seed=3)
    assert forward.ci95 is not None and backward.ci95 is not None
    assert forward.ci95 == pytest.approx([-backward.ci95[1], -backward.ci95[0]])
    assert forward.p == backward.p


def test_paired_matches_the_closed_form_with_one_seed() -> None:
    first, second = _planted(0.0, seeds=1)
    found = stats.paired(first, second, seed=0, resamples=4000)
    assert found.ci95 is not None
    assert (found.ci95[1] - found.ci95[0]) / 2 == pytest.approx(
        float(stats.ci95((first - second)[0])), rel=0.06
    )


def test_p_is_two_sided() -> None:
    noise = np.random.default_rng(6).normal(size=(1, 400))
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    for z in (
        0.5,
        1.0,
        2.0,
    ):  # a mean of z standard errors: p = 2 (1 - Phi(z)), up to the resamples' own error
        found = stats.paired(noise + z / 20, np.zeros((1, 400)), seed=0, resamples=20_000)
        assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.12)


def test_paired_under_no_difference() -> None:
    same = np.full((3, 50), 0.4)
    assert stats.paired(same, same, seed=0) == (0.0, [0.0, 0.0], 1.0, 0)
    rejected = 0
    for trial in range(200):
        generator = np.random.default_rng(trial)
        noise = generator.normal(size=(2, 1, 100))
        found = stats.paired(noise[0], noise[1], seed=trial, resamples=400)
        rejected += found.p is not None and found.p < 0.05
    assert 2 <= rejected <= 22  # 10 expected


def test_paired_sees_what_differs_between_seeds() -> None:
    base = np.zeros((3, 400))
    shifted = base + np.array(
        [[-0.1], [0.0], [0.1]]
    )  # no task differs inside a seed: only seeds do
    found = stats.paired(shifted, base, seed=0)
    assert found.ci95 is not None and found.ci95[0] < -0.05 and found.ci95[1] > 0.05


def test_paired_does_not_take_a_shared_task_for_several() -> None:
    tasks = np.random.default_rng(4).normal(0, 1, 300)
    three = stats.paired(np.tile(tasks, (3, 1)), np.zeros((3, 300)), seed=0)
    assert three.ci95 is not None
    assert (three.ci95[1] - three.ci95[0]) / 2 == pytest.approx(float(stats.ci95(tasks)), rel=0.08)


def test_paired_counts_what_is_undefined_and_refuses_other_shapes() -> None:
    broken = np.zeros((2, 5))
    broken[1, 3] = math.nan
    assert stats.paired(broken, np.zeros((2, 5)), seed=0) == (None, None, None, 1)
    assert stats.paired(np.full((1, 2), math.inf), np.full((1, 2), math.inf), seed=0).undefined == 2
    with pytest.raises(ValueError, match="same shape"):
        stats.paired(np.zeros((2, 5)), np.zeros((2, 4)), seed=0)
