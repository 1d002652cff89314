"""What a ledger records: time, totals, phases, energy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import case
from clusters import Clusters

from metalearn.config.registry import TABLES
from metalearn.evaluate.curves import learning_curve
from metalearn.evaluate.flops import Flops
from metalearn.evaluate.ledger import PHASES, CostLedger, MissingPhase
from metalearn.types import NullLedger

# the ledger


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("metalearn.evaluate.ledger.time.perf_counter", clock)
    yield clock


def test_every_second_has_one_owner(clock: Clock) -> None:
    ledger = CostLedger()
    with ledger.span("setup"):
        clock.now += 1
        with ledger.span("meta_train", gradient_steps=3):
            clock.now += 10
            with ledger.under("tune").span("adapt", tasks=2):
                clock.now += 100
            with ledger.paused():
                clock.now += 5000  # on another ledger
            assert ledger.seconds("meta_train") == 10  # also inside a span
            clock.now += 20
        clock.now += 2
    clock.now += 9000  # nobody's
    found = {phase: entry["seconds"] for phase, entry in ledger.totals().items()}
    assert found == {"setup": 3, "meta_train": 30, "tune": 100}
    assert ledger.totals()["tune"]["tasks"] == 2


def test_totals_taken_inside_a_span_are_whole_after_a_restart(clock: Clock) -> None:
    ledger = CostLedger()
    with ledger.span("setup"):
        clock.now += 4
        totals = ledger.totals()
        clock.now += 7  # lost with the process
    other = CostLedger()
    with other.span("setup"):
        clock.now += 1
        before = other.seconds("setup")
        other.restore(totals)
        other.add("setup", before)
        clock.now += 2
    assert other.seconds("setup") == 4 + 1 + 2


def test_null_is_not_measured_and_zero_is_zero() -> None:
    ledger = CostLedger()
    ledger.add("meta_train", 1.0, gradient_steps=2)
    ledger.add("search", 0.0, flops=0)
    cost = ledger.cost()
    assert cost["meta_train"]["flops"] is None and cost["meta_train"]["gradient_steps"] == 2
    assert cost["search"]["flops"] == 0 == cost["pretrain"]["flops"] == cost["pretrain"]["seconds"]
    assert {row["energy_joules"] for row in cost.values()} == {None}  # a CPU reports none
    ledger.add("search", 1.0, flops=5, flops_elementwise=None)
    ledger.add("search", 1.0, flops=5, flops_elementwise=7)
    assert ledger.cost()["search"]["flops"] == 10
    assert ledger.cost()["search"]["flops_elementwise"] is None
    keys = {
        "flops",
        "flops_elementwise",
        "flops_architecture",
        "seconds",
        "device",
        "peak_bytes",
        "gradient_steps",
        "examples",
        "labels",
        "candidates",
        "energy_joules",
        "tasks",
    }
    assert list(cost) == list(PHASES) and all(set(row) == keys for row in cost.values())


def test_flops_that_are_given_are_not_counted_again() -> None:
    ledger = CostLedger()
    ledger.run("search", lambda: torch.ones(2), flops=11, flops_elementwise=3, flops_architecture=6)
    a = torch.zeros(4, 4)
    ledger.run("search", torch.mm, a, a, flops_architecture=100)
    row = ledger.cost()["search"]
    assert (row["flops"], row["flops_elementwise"], row["flops_architecture"]) == (11 + 128, 3, 106)
    assert ledger.flops_of("search", torch.mm, a, a, times=10)["flops"] == 1280


def test_counting_can_be_left_out() -> None:
    a = torch.zeros(4, 4)
    ledger = CostLedger(counting=False)
    ledger.run("search", torch.mm, a, a)
    ledger.under("tune").run("adapt", torch.mm, a, a)
    assert ledger.cost()["search"]["flops"] is None is ledger.cost()["tune"]["flops"]
    assert NullLedger().run("search", torch.mm, a, a).shape == (4, 4)


def test_counting_is_off_the_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(function: Any, *args: Any) -> Flops:
        clock.now += 50
        return Flops(1, 1)

    monkeypatch.setattr("metalearn.evaluate.ledger.cached_count", slow)
    ledger = CostLedger()
    ledger.run("adapt", lambda: None)
    assert ledger.cost()["adapt"]["seconds"] == 0 and ledger.cost()["adapt"]["flops"] == 1


def test_a_missing_phase_is_refused() -> None:
    """A method that adapts and answers without writing it down costs nothing, and is not
    believed."""
    given, tests = case("maml", TABLES["methods"]["maml"]), Clusters("test", 12)

    def silent(
        meta: Any, support: Any, query_x: Any, steps: Any, key: Any = None, ledger: Any = None
    ) -> Any:
        return given.method.learn(meta, support, query_x, steps, key=key)  # forgets the ledger

    ledger = CostLedger()
    learning_curve(given.method, given.state().meta, tests, (0, 1), 3, ledger=ledger)
    ledger.require(given.method.traits.phases)
    ledger = CostLedger()
    with pytest.raises(MissingPhase, match="nothing was recorded for adapt, predict"):
        learning_curve(
            given.method._replace(learn=silent), given.state().meta, tests, (0, 1), 3, ledger=ledger
        )
    # no ledger, no check
    learning_curve(given.method._replace(learn=silent), given.state().meta, tests, (0, 1), 3)
    with pytest.raises(MissingPhase, match="search"):
        CostLedger().require(("search",))


@pytest.mark.gpu
def test_a_card_that_reports_its_energy_is_read() -> None:
    ledger = CostLedger("cuda:0")
    a = torch.randn(4096, 4096, device="cuda:0")
    with ledger.span("adapt"):
        for _ in range(200):
            a = (a @ a).clamp(-1, 1)
    row = ledger.cost()["adapt"]
    assert row["peak_bytes"] > 2 * a.numel() * 4
    assert row["device"] == "cuda:0"
    if row["energy_joules"] is None:
        pytest.skip("this card does not report its energy")
    assert 0 < row["energy_joules"] < math.inf
