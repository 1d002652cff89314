"""Reliability of a task's score: the part of its variance that is not chance, planted here."""

from __future__ import annotations

import numpy as np
import pytest

from metalearn.results.reliability import agreement, binomial_reliability


@pytest.mark.parametrize(("spread", "queries"), [(0.0, 25), (0.05, 25), (0.1, 25), (0.1, 95)])
def test_reliability_is_true_variance_over_observed_variance(spread: float, queries: int) -> None:
    generator = np.random.default_rng(0)
    truth = np.clip(generator.normal(0.7, spread, (4, 20_000)), 0, 1)
    scores = generator.binomial(queries, truth) / queries
    expected = truth.var() / (truth.var() + (truth * (1 - truth)).mean() / queries)
    assert binomial_reliability(scores, queries) == pytest.approx(expected, abs=0.02)


def test_agreement_is_the_correlation_between_seeds() -> None:
    generator = np.random.default_rng(0)
    tasks = generator.normal(0, 1, 20_000)
    scores = tasks + generator.normal(0, 1, (3, 20_000)) + np.asarray([[0.0], [5.0], [-2.0]])
    assert agreement(scores) == pytest.approx(0.5, abs=0.02)
    assert agreement(generator.normal(0, 1, (3, 20_000))) == pytest.approx(0, abs=0.02)


def test_what_has_no_reliability() -> None:
    flat = np.full((2, 10), 0.5)
    assert binomial_reliability(flat, 25) is None and agreement(flat) is None
    assert binomial_reliability([[0.2, 0.4]], 1) is None  # noise is not estimable
    assert binomial_reliability([[0.2, np.nan]], 25) is None
    assert agreement([[0.2, 0.4]]) is None  # one seed
