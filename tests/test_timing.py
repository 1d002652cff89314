"""Seconds of new tasks, timed again for all rows in turns: medians, resuming, a busy machine."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from commandline import sinusoid
from run_folders import groups_of, write_rows, write_run

from metalearn.compare import timing
from metalearn.compare.compare import compare
from metalearn.config.experiment import Plan, parse
from metalearn.errors import Stopped
from metalearn.evaluate import curves
from metalearn.evaluate.cost_block import EACH, prediction_parts, total_seconds, waiting_share
from metalearn.machine import Activity, waiting_seconds
from metalearn.results.break_even.counts import method_costs
from metalearn.results.costs import prediction_cost, prediction_cost_parts
from metalearn.run import cost
from metalearn.run import timing as run_timing
from metalearn.run.run import run_one
from metalearn.run.timing import TimedRun, with_timing

LABELS = ("maml", "scratch", "nas")
NAS = {"name": "per_task_nas", "label": "nas", "space": {"name": "mlp-reg"}}
FILE: dict[str, Any] = {
    **sinusoid(method=None, experiment="timed", run={"meta_steps": 4}),
    "methods": [
        {"name": "maml"},
        {"name": "scratch"},
        {**NAS, "candidates": 2, "search_steps": 2, "evaluate": {"episodes": 3}},
    ],
}


def plan() -> Plan:
    return parse(FILE)


def result(out: Path, label: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (out / "methods" / label / "seed-0" / "result.json").read_text()
    )
    return found


def rounds(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "timing.json").read_text())["rounds"]
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("timing") / "out"
    compare(plan(), out)
    return out


def test_medians_of_five_rounds_are_the_seconds_of_new_tasks(compared: Path) -> None:
    found = rounds(compared)
    assert len(found) == timing.ROUNDS == 5
    for label in LABELS:
        row, name = result(compared, label), f"methods/{label}/seed-0"
        for phase in EACH:
            entry = row["cost"][phase]
            for field, kind in (("seconds_alone", "alone"), ("seconds_batched", "batched")):
                kind = kind if kind in found[0]["seconds"][name] else "alone"
                values = [one["seconds"][name][kind][phase] for one in found]
                assert entry["rounds"][field] == values
                assert entry[field] == statistics.median(values)
            assert entry["seconds"] == entry["seconds_batched"]
            by_one = phase == "predict" and label != "nas"  # a search on the host has no batch
            assert ("seconds_one_query" in entry) == by_one
            if phase == "predict":
                parts = prediction_parts(entry, "seconds", entry["queries"])
                assert parts is not None and entry["seconds_per_query"] == parts[1]
            assert set(entry["first_pass"]) >= {"seconds", "seconds_alone", "seconds_batched"}
        facts = row["timing"]
        assert (facts["rounds"], facts["rows"]) == (5, 3) and facts["first_call_seconds"] > 0
        # the run's own seconds add up as before
        assert total_seconds(row["cost"]) == pytest.approx(row["seconds"], rel=0.05)
    adapt = result(compared, "maml")["cost"]["adapt"]
    assert 0 < adapt["seconds_at_start"] <= adapt["seconds_batched"]
    assert "at_start" not in found[0]["seconds"]["methods/nas/seed-0"]


def test_compilation_and_looks_at_training_tasks_are_no_cost_of_learning(compared: Path) -> None:
    cost = result(compared, "maml")["cost"]
    assert cost["compile"]["seconds"] > 0 and cost["compile"]["flops"] is None
    if waiting_seconds() is not None:
        assert cost["meta_train"]["seconds_waiting"] >= 0 and waiting_share(cost) is not None
    assert cost["tune"]["tasks"] == 8  # one look at validation tasks; that at training tasks:
    assert cost["setup"]["tasks"] == 8


def test_a_finished_timing_is_not_repeated(compared: Path) -> None:
    before = {
        file: file.read_bytes()
        for file in [compared / "timing.json", *compared.rglob("result.json")]
    }
    compare(plan(), compared)
    assert all(file.read_bytes() == text for file, text in before.items())


def test_an_interrupted_timing_goes_on_with_the_next_round(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = compared / "timing.json"
    known = json.loads(file.read_text())
    first_two = known["rounds"][:2]
    file.write_text(json.dumps({**known, "rounds": first_two}))
    made, measure = list[int](), TimedRun.round

    def stopping(self: TimedRun, number: int) -> Any:
        made.append(number)
        if number == 3:
            raise Stopped("stopped")
        return measure(self, number)

    monkeypatch.setattr(TimedRun, "round", stopping)
    with pytest.raises(Stopped):
        compare(plan(), compared)
    assert made == [0, 0, 0, 2, 2, 2, 3]  # first calls, round 2, and the interrupted one
    assert rounds(compared)[:2] == first_two and len(rounds(compared)) == 3
    monkeypatch.setattr(TimedRun, "round", measure)
    compare(plan(), compared)
    assert rounds(compared)[:2] == first_two and len(rounds(compared)) == 5
    entry = result(compared, "maml")["cost"]["adapt"]
    assert entry["seconds_alone"] == statistics.median(entry["rounds"]["seconds_alone"])


def test_another_row_makes_all_rows_timed_again(compared: Path) -> None:
    before = rounds(compared)
    more = parse({**FILE, "methods": [*FILE["methods"], {"name": "reptile"}]})
    compare(more, compared)
    assert len(rounds(compared)) == 5 and rounds(compared)[0] != before[0]
    assert result(compared, "maml")["timing"]["rows"] == 4


@pytest.mark.parametrize("fits", [2, 50])
def test_the_batch_that_is_timed_is_that_of_the_test(
    fits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large network few tasks at once are learned: 50 copies of it may not fit into memory."""
    learned, size, measure = list[int](), min(fits, 10), cost.learning_ledger

    def counted(*args: Any, **options: Any) -> Any:
        learned.append(args[5])
        return measure(*args, **options)

    for module in (cost, run_timing):
        monkeypatch.setattr(module, "learning_ledger", counted)
    monkeypatch.setattr(curves, "tasks_at_once", lambda chunk, meta: min(chunk, fits))
    monkeypatch.setattr(cost, "tasks_at_once", lambda chunk, meta: min(chunk, fits))
    one = parse({**FILE, "methods": FILE["methods"][:1]}).experiments[0]
    result = run_one(one, tmp_path / "run")
    numbers = "three alone, a batch, one alone with one query, a batch without steps"
    assert learned == [1, 1, 1, size, 1, size], numbers
    adapt, predict = result["cost"]["adapt"], result["cost"]["predict"]
    assert adapt["gradient_steps"] == one.evaluate.steps[-1] and predict["tasks"] == 20
    learned.clear()
    run_timing.open_run(tmp_path / "run").round(0)
    assert learned == [1, size, size, size], "the last with one query"


def test_only_the_test_has_a_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It samples and hashes 32 tasks, a second for large images; validations do not store it."""
    made, hashed = list[str](), curves.fingerprint

    def counted(source: Any, seed: int) -> str:
        made.append(source.spec.split)
        return hashed(source, seed)

    monkeypatch.setattr(curves, "fingerprint", counted)
    one = parse({**FILE, "methods": FILE["methods"][:1]}).experiments[0]
    result = run_one(one, tmp_path / "run")
    assert made == ["test"] and len(result["episodes"]["fingerprint"]) == 64


@pytest.mark.parametrize("count", [2, 6])
def test_each_round_times_one_seed_of_each_row(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds take turns, each at least once; medians are those of all rounds of the method."""
    write_rows(tmp_path, ["maml", "scratch"], seeds=count)
    names = [f"methods/{label}/seed-{n}" for label in ("maml", "scratch") for n in range(count)]
    (tmp_path / names.pop() / "result.json").unlink()  # it has not finished
    monkeypatch.setattr(timing, "open_run", Unopened)
    timing.time_rows(tmp_path, [tmp_path / name for name in names])
    found = rounds(tmp_path)
    assert len(found) == max(5, count)
    for number, one in enumerate(found):
        seeds = f"maml/seed-{number % count}", f"scratch/seed-{number % (count - 1)}"
        assert list(one["seconds"]) == [f"methods/{seed}" for seed in seeds]
    for name in names:
        row = json.loads((tmp_path / name / "result.json").read_text())
        own = [float(n) for n, one in enumerate(found) if name in one["seconds"]]
        assert row["cost"]["adapt"]["rounds"]["seconds_alone"] == own != []
        assert row["cost"]["adapt"]["seconds_alone"] == statistics.median(range(len(found)))
        assert (row["timing"]["of_seed"], row["timing"]["rounds"]) == (len(own), len(found))
        assert row["timing"]["of_method"] == len(found)


@pytest.mark.parametrize("other", ["equal", "more", "unknown"])
def test_a_slow_round_of_one_seed_does_not_change_the_seconds(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 has rounds 0 and 3, of which 3 is interrupted: as in the others, 0.15 s."""
    write_rows(tmp_path, ["scratch"], seeds=3)
    names = [f"methods/scratch/seed-{seed}" for seed in range(3)]
    flops: dict[str, Callable[[Any], Any]]
    flops = {"equal": lambda old: old, "more": lambda old: 2 * old, "unknown": lambda _: None}
    edit_flops(tmp_path / names[0], flops[other])
    monkeypatch.setattr(timing, "open_run", Unopened)
    monkeypatch.setattr(Unopened, "seconds", [0.16, 0.15, 0.15, 0.68, 0.14])
    timing.time_rows(tmp_path, [tmp_path / name for name in names])
    rows = [json.loads((tmp_path / name / "result.json").read_text()) for name in names]
    seconds = [row["cost"]["adapt"]["seconds_alone"] for row in rows]
    own = [row["timing"]["of_method"] for row in rows]
    if other == "equal":
        assert (seconds, own) == ([0.15] * 3, [5] * 3)
    else:  # another architecture: its own rounds only
        assert seconds == pytest.approx([0.42, 0.15, 0.15]) and own == [2, 3, 3]
    assert rows[0]["cost"]["adapt"]["rounds"]["seconds_alone"] == [0.16, 0.68]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_noise_of_the_rounds_is_in_the_costs_per_task(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a median of 5 rounds that all seeds share: pi / 10 times their variance, 4 degrees."""
    seconds = [0.16, 0.15, 0.15, 0.68, 0.14]
    write_rows(tmp_path, ["scratch"], seeds=count)
    names = [f"methods/scratch/seed-{seed}" for seed in range(count)]
    monkeypatch.setattr(timing, "open_run", Unopened)
    monkeypatch.setattr(Unopened, "seconds", seconds)
    timing.time_rows(tmp_path, [tmp_path / name for name in names])
    (group,) = groups_of(tmp_path)
    target = {"metric": "accuracy", "value": 0.4}
    ((variance, freedom),) = method_costs(group, target, "seconds").timing
    relative = statistics.variance(seconds) / statistics.median(seconds) ** 2
    assert (variance, freedom) == (pytest.approx(math.pi / 10 * relative), 4)
    assert method_costs(group, target, "flops").timing == ()
    if count == 5:  # a seed with other FLOPs has its own median: the seeds' variance has its noise
        edit_flops(tmp_path / names[1], lambda old: 2 * old)
        timing.time_rows(tmp_path, [tmp_path / name for name in names])
        ((variance, freedom),) = method_costs(groups_of(tmp_path)[0], target, "seconds").timing
        of_four = statistics.variance([0.16, 0.15, 0.68, 0.14]) * math.pi / 8
        whole = (4 * 0.155 + 0.15) / 5
        assert (variance, freedom) == (pytest.approx(0.8**2 * of_four / whole**2), 3)


def test_one_query_costs_more_than_its_share_of_a_call(tmp_path: Path) -> None:
    """0.30 ms + 5 us a query, measured with 25 queries and with 1: one costs 305 us, not 17."""
    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml")
    (group,) = groups_of(tmp_path)
    run = group.first
    predict = run.result["cost"]["predict"]
    predict |= {"queries": 25, "seconds_batched": 0.425e-3}
    assert prediction_cost(run, "seconds", 1) == pytest.approx(17e-6)
    predict["seconds_one_query"] = 0.305e-3
    assert prediction_cost(run, "seconds", 1) == pytest.approx(305e-6)
    assert prediction_cost(run, "seconds", 25) == prediction_cost(run, "seconds")
    assert prediction_cost(run, "seconds", 100) == pytest.approx(0.8e-3)
    for one, fixed in ((0.5e-3, 0.425e-3), (1e-6, 0.0)):  # noise: no query is free, nor less
        predict["seconds_one_query"] = one
        parts = prediction_cost_parts(run, "seconds")
        assert parts is not None and parts[0] == pytest.approx(fixed) and parts[1] >= 0


def edit_flops(folder: Path, change: Callable[[Any], Any]) -> None:
    file = folder / "result.json"
    result = json.loads(file.read_text())
    result["cost"]["adapt"]["flops"] = change(result["cost"]["adapt"]["flops"])
    file.write_text(json.dumps(result))


class Unopened:
    """A run that takes these seconds in each round."""

    seconds: Sequence[float] = range(10)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def round(self, number: int) -> dict[str, dict[str, float]]:
        seconds = dict.fromkeys(EACH, float(self.seconds[number]))
        return {"alone": seconds, "batched": seconds, "at_start": seconds}

    def first_call(self) -> float:
        return 1.0


def test_the_seconds_of_the_run_itself_are_never_lost() -> None:
    entry = {"seconds": 2.0, "seconds_batched": 2.0, "seconds_alone": 5.0, "flops": 7}
    once = with_timing({"cost": {"adapt": entry}}, [{"alone": {"adapt": 3.0}}], {"rounds": 1})
    again = with_timing(once, [{"alone": {"adapt": 4.0}}], {"rounds": 1})
    assert again["cost"]["adapt"]["first_pass"] == {k: v for k, v in entry.items() if k != "flops"}
    assert again["cost"]["adapt"]["seconds_batched"] == 4.0
    shared = {"cost": {"search": {"seconds": 9.0, "flops": 1}}}  # spent once for all tasks
    assert with_timing(shared, [], {})["cost"] == shared["cost"]


def test_what_others_took_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 s on 2 cores: 12 s of work on them, 9 of which are this process's."""
    monkeypatch.setattr("metalearn.machine.cores", lambda: 2)
    before = Activity(100.0, 5.0, 1000.0)
    assert Activity(110.0, 14.0, 1012.0).others_since(before) == pytest.approx(0.15)
    assert Activity(110.0, 14.0, 1008.0).others_since(before) == 0  # ticks are coarse
    assert Activity(110.0, 14.0, None).others_since(before) is None
