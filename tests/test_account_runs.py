"""The cost of whole runs: signals in a search, tuned starts, starts from other rows, what a kill
must not lose."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Commands, refused, sinusoid, write

from metalearn.evaluate.flops import Flops
from metalearn.evaluate.ledger import CostLedger
from metalearn.storage import checkpoint

LOG = {"min": 0.001, "max": 0.1, "distribution": "log_uniform"}
SHARED = {
    "name": "shared_nas",
    "space": {"name": "mlp-reg"},
    "candidates": 3,
    "search_steps": 2,
    "search_tasks": 4,
    "score_tasks": 8,
    "adapt_steps": 1,
}


def tiny(method: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A tiny experiment file of this method alone."""
    data = sinusoid(**sections)
    return data if method is None else {**data, "method": method}


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def trained(metalearn: Commands, name: str, method: dict[str, Any], **sections: Any) -> Path:
    done = metalearn(
        "train", write(metalearn.folder, name, tiny(method, **sections)), "--out", name
    )
    assert done.code == 0, done.err
    return metalearn.folder / name


PER_TASK = {
    "name": "per_task_nas",
    "space": {"name": "mlp-reg"},
    "candidates": 3,
    "search_steps": 2,
}
# every task is a search
FEW_TASKS: dict[str, Any] = {
    "run": {"meta_steps": 4, "validate": {"every": 10, "episodes": 2}},
    "evaluate": {"episodes": 4},
}


@pytest.mark.parametrize("own", [SHARED, PER_TASK], ids=["all", "one"])
def test_a_signal_in_a_search_ends_it_and_nothing_is_lost(
    metalearn: Commands, own: dict[str, Any]
) -> None:
    """Also where it meets the counting of FLOPs: 75, and after resuming the same cost as an
    undisturbed run."""
    whole = trained(metalearn, f"whole-{own['name']}", own, **FEW_TASKS)
    name = f"stopped-{own['name']}"
    file = write(metalearn.folder, name, tiny(own, **FEW_TASKS))
    running = metalearn.start("train", file, "--out", name)
    folder = metalearn.folder / name
    assert running.wait_for((folder / "config.yaml").exists)
    running.kill(signal.SIGTERM)
    assert running.wait().code == 75
    assert metalearn("resume", folder).code == 0
    for phase in ("search", "retrain", "adapt", "predict"):
        one, other = (result(home)["cost"][phase] for home in (folder, whole))
        assert one["flops"] == other["flops"] is not None, phase
    assert not result(folder)["uncounted"]


def test_a_tuned_field_that_decides_the_start_is_used(metalearn: Commands) -> None:
    method = {
        "name": "meta_sgd",
        "rate_range": [0.005, 0.005],
        "tune": {"rate_range": {"values": [[0.03, 0.03]]}},
    }
    tuned = trained(metalearn, "tuned", method, budget={"trials": 1}, run={"meta_steps": 0})
    expected = [0.03, 0.03]
    assert yaml.safe_load((tuned / "config.yaml").read_text())["method"]["rate_range"] == expected
    meta = checkpoint.read(checkpoint.path_of(tuned / "checkpoints", 0))
    rates = [value for name, value in meta.items() if name.startswith("meta.") and "rate" in name]
    assert rates and all(((value - 0.03).abs() < 1e-6).all() for value in rates)


def test_trials_of_a_row_that_starts_from_another_do_not_pay_for_it_again(
    metalearn: Commands,
) -> None:
    again = {"name": "maml", "label": "again", "start": "maml", "tune": {"inner_lr": LOG}}
    file = sinusoid(
        method=None, methods=[{"name": "maml"}, again], run={"meta_steps": 6}, budget={"trials": 2}
    )
    done = metalearn("compare", write(metalearn.folder, "starts", file), "--out", "starts")
    assert done.code == 0, done.err
    first, second = (
        result(metalearn.folder / "starts/methods" / label / "seed-0")
        for label in ("maml", "again")
    )
    paid = sum(first["cost"][phase]["flops"] for phase in ("tune", "meta_train"))
    tune = json.loads(
        (metalearn.folder / "starts/methods/again/seed-0/tune/trials.json").read_text()
    )
    assert all(
        trial["cost"]["flops"] < first["cost"]["meta_train"]["flops"] + paid for trial in tune
    )
    spent = {phase: first["cost"][phase]["flops"] for phase in ("tune", "meta_train")}
    assert {phase: flops for phase, flops in second["started"].items() if flops} == spent
    # its own, and the start's
    assert second["cost"]["meta_train"]["flops"] == 2 * first["cost"]["meta_train"]["flops"]


@pytest.mark.parametrize("name", ["scratch", "per_task_nas"])
def test_a_kill_during_the_test_keeps_the_bill_of_the_look(metalearn: Commands, name: str) -> None:
    method = PER_TASK if name == "per_task_nas" else {"name": name}
    folder = trained(metalearn, f"look-{name}", method, **FEW_TASKS)
    before = result(folder)["cost"]["tune"]
    (folder / "result.json").unlink()
    assert metalearn("resume", folder).code == 0
    after = result(folder)["cost"]["tune"]
    assert before["flops"] == after["flops"] > 0 and before["candidates"] == after["candidates"]


def test_another_genotype_is_another_run(metalearn: Commands) -> None:
    method = {**SHARED, "found": [0, 0, 0, 0, 0, 0]}
    folder = trained(metalearn, "given", method, run={"meta_steps": 2})
    assert result(folder)["cost"]["search"]["flops"] == 0
    changed = {**method, "found": [1, 0, 0, 0, 0, 0]}
    other = write(metalearn.folder, "given", tiny(changed, run={"meta_steps": 2}))
    refused(metalearn("train", other, "--out", "given"), "contains other files")
    assert metalearn("resume", folder).code == 0


def test_a_search_that_has_not_ended_is_no_run_to_use(metalearn: Commands) -> None:
    file = write(metalearn.folder, "open", tiny({**SHARED, "candidates": 40}))
    running = metalearn.start("train", file, "--out", "open")
    assert running.wait_for((metalearn.folder / "open" / "environment.json").exists)
    running.kill()
    running.wait()
    refused(metalearn("evaluate", "open"), "its search is not finished", "metalearn resume open")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": SHARED, "task": {"queries": 0}}, ("task.queries", "scores candidates")),
        ({"method": {**SHARED, "start": "runs/none"}}, ("method.start", "has not found yet")),
        ({"method": {**SHARED, "contains": {"name": "proto_net"}}}, ("method.contains.name",)),
        ({"evaluate": {"target": {"value": 5.0}}}, ("evaluate.target.metric", "must be loss")),
        ({"method": {"name": "maml", "start": "runs/none"}}, ("method.start", "no finished run")),
    ],
)
def test_refused_before_anything_is_written(
    metalearn: Commands, sections: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(
        metalearn("train", write(metalearn.folder, "no", tiny(**sections)), "--out", "no"), *words
    )
    assert not (metalearn.folder / "no").exists()


def test_counting_is_set_up_wherever_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search spends inside a search: what counting its parts takes is on no phase but set-up."""
    now = [0.0]

    def slow(self: CostLedger, phase: str, function: Any, args: Any) -> Flops:
        now[0] += 100
        return Flops(7, 0)

    def inner() -> None:
        now[0] += 2

    def outer(ledger: CostLedger) -> None:
        now[0] += 1
        ledger.run("adapt", inner)

    monkeypatch.setattr("metalearn.evaluate.ledger.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(CostLedger, "_count", slow)
    ledger = CostLedger()
    with ledger.span("setup"):
        ledger.run("search", outer, ledger.under("search"), flops=0)
        ledger.aside().run("predict", inner)
    spent = ledger.cost()
    assert spent["search"]["seconds"] == 3 and spent["search"]["flops"] == 7
    # the aside has a ledger of its own
    assert spent["setup"]["seconds"] == 200 and spent["predict"]["seconds"] == 0
    alone = CostLedger()
    alone.run("adapt", inner)
    assert alone.seconds("adapt") == 2  # a ledger without a run has no set-up to record
