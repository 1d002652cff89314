"""Fingerprints, ensembles, and what a curve writes to the ledger."""

from __future__ import annotations

import pytest
import torch
from checks import OPTIONS, case
from clusters import Clusters
from test_curves import F64, WAVES, Relabelled, answering, shape_of

from metalearn.config.registry import METHODS
from metalearn.evaluate.curves import Curve, fingerprint, learning_curve
from metalearn.evaluate.ensemble import ensemble
from metalearn.evaluate.ledger import PHASES, CostLedger
from metalearn.rng import fold_in
from metalearn.types import Episode, Key

#
# fingerprints, ensembles


class Altered(Clusters):
    """One number of one query of one episode (`at`) differs by `by`."""

    at, by = 3, 0.0

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        episode = super().sample(key, num_tasks, start)
        if start <= self.at < start + num_tasks:
            episode.query.x[self.at - start, 2, 1] += self.by
        return episode


def test_fingerprints_follow_the_data() -> None:
    source, altered = Clusters("test", 12), Altered("test", 12)
    first = fingerprint(source, 1)
    assert len(first) == 64 and first == fingerprint(source, 1) == fingerprint(altered, 1)
    altered.by = 0.01
    seen = {
        first,
        fingerprint(source, 2),
        fingerprint(Clusters("train", 12), 1),
        fingerprint(Relabelled(source), 1),
    }  # type: ignore[arg-type]
    assert len(seen | {fingerprint(altered, 1)}) == 5
    altered.at = 32
    assert fingerprint(altered, 1) == first  # the first 32 episodes alone
    curve = learning_curve(
        case("maml", METHODS["maml"]).method,
        case("maml", METHODS["maml"]).state().meta,
        source,
        (0,),
        2,
    )
    assert isinstance(curve, Curve) and curve.fingerprint == first  # however few are learned


def test_an_ensemble_of_classifiers_is_the_mean_of_their_probabilities() -> None:
    given, tests = case("maml", METHODS["maml"]), Clusters("test", 12)
    metas = [given.state(seed).meta for seed in range(3)]
    episode = tests.sample(fold_in(0), 2)
    logits = (
        ensemble(given.method, metas)
        .learn(None, episode.support, episode.query.x, (0, 2))
        .predictions
    )
    each = [
        given.method.learn(meta, episode.support, episode.query.x, (0, 2)).predictions
        for meta in metas
    ]
    torch.testing.assert_close(logits.exp(), torch.stack([one.softmax(-1) for one in each]).mean(0))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 2, 12, dtype=F64))
    assert logits.dtype == F64


def test_an_ensemble_of_regressions_is_the_mean() -> None:
    values = iter([1.0, 2.0, 6.0])
    method = answering(
        WAVES.spec, lambda s, x, points, keys: torch.full(shape_of(x, points, 1), next(values))
    )
    assert (
        ensemble(method, [{}, {}, {}]).learn(None, None, torch.zeros(2, 3, 1), (0,)).predictions
        == 3
    ).all()


# the ledger


def test_learning_is_written_to_its_phases() -> None:
    """11 tasks of 3 steps in pieces of 4: gradient steps and tasks under adapt, tasks under
    predict."""
    given, tests, ledger = case("maml", METHODS["maml"]), Clusters("test", 12), CostLedger()
    learning_curve(given.method, given.state().meta, tests, (0, 3), 11, chunk=4, ledger=ledger)
    cost = ledger.cost()
    assert list(cost) == list(PHASES)
    assert cost["adapt"]["gradient_steps"] == 33
    assert cost["adapt"]["tasks"] == 11
    assert cost["adapt"]["seconds"] > 0
    assert cost["predict"]["tasks"] == 11 and cost["predict"]["gradient_steps"] == 0
    assert cost["meta_train"]["seconds"] == 0 and cost["meta_train"]["flops"] == 0


def test_counts_add_up_and_unknown_words_are_refused() -> None:
    ledger = CostLedger()
    assert ledger.run("search", lambda a, b: a + b, 2, 3, times=4, candidates=2, labels=5) == 5
    ledger.add("search", 1.5, labels=1)
    assert ledger.totals()["search"]["candidates"] == 8
    assert ledger.totals()["search"]["labels"] == 21
    assert ledger.seconds("search") >= 1.5 and ledger.seconds("adapt") == 0
    with pytest.raises(ValueError, match="unknown phase 'tuning'; valid: setup, compile, tune"):
        ledger.add("tuning", 1.0)
    with pytest.raises(ValueError, match="unknown count 'flop'; valid: "):
        ledger.add("tune", 1.0, flop=3)
    other = CostLedger()
    other.restore(ledger.totals())
    other.add("search", 1.0)
    # a copy: the first is as it was
    assert other.seconds("search") == pytest.approx(ledger.seconds("search") + 1)


def test_what_fails_has_cost_too() -> None:
    ledger = CostLedger()
    with pytest.raises(ZeroDivisionError):
        ledger.run("retrain", lambda: 1 // 0, gradient_steps=1)
    assert ledger.totals()["retrain"]["gradient_steps"] == 1


def test_a_ledger_under_a_phase_writes_all_to_it() -> None:
    given, tests, ledger = case("maml", METHODS["maml"]), Clusters("test", 12), CostLedger()
    learning_curve(given.method, given.state().meta, tests, (0, 2), 3, ledger=ledger.under("tune"))
    assert set(ledger.totals()) == {"tune"} and ledger.totals()["tune"]["gradient_steps"] == 6
    assert ledger.totals()["tune"]["tasks"] == 3  # counted once, though learned and predicted


def test_options_name_methods() -> None:
    assert set(OPTIONS) <= set(METHODS)
