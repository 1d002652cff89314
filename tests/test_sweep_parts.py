"""The parts of a sweep: distributions, hyperband, leases, the queue; the shipped sweep files."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import sinusoid
from hypothesis import given
from hypothesis import strategies as st
from sweep_kills import swept

from metalearn.config.validate import validated
from metalearn.errors import ConfigError
from metalearn.sweep import leases, worker
from metalearn.sweep.command import conclusion
from metalearn.sweep.distributions import DISTRIBUTIONS, default_distribution
from metalearn.sweep.file import read
from metalearn.sweep.hyperband import EarlyTerminate, should_continue
from metalearn.sweep.leases import EXPIRY, Leases
from metalearn.sweep.parameters import override
from metalearn.sweep.request import claim_folder
from metalearn.sweep.trial_queue import TrialQueue
from metalearn.sweep.worker import with_group
from metalearn.tracking.tracker import group_name

ROOT = Path(__file__).resolve().parents[1]


def test_hyperband_by_hand() -> None:
    rule = EarlyTerminate(type="hyperband", max_iter=5, eta=2, s=2)
    assert rule.bands(5) == [1, 2]
    assert EarlyTerminate(type="hyperband", min_iter=2, eta=3).bands(20) == [2, 6, 18, 54]
    # W&B's own example
    curves = {0: [10, 9], 1: [10, 10], 2: [10, 8, 8], 3: [10, 7, 7], 4: [10, 6, 6]}
    seen = {number: dict(enumerate(curve, 1)) for number, curve in curves.items()}
    assert [should_continue(rule, seen, number) for number in (1, 2, 3)] == [False, True, True]
    back = {0: {1: 1.0, 2: 5.0}, 1: {1: 9.0, 2: 2.0}, 2: {1: 9.0, 2: 3.0}}
    loose = rule.model_copy(update={"strict": False})
    # strict judges the value at the band
    assert not should_continue(rule, back, 0) and should_continue(loose, back, 0)
    assert should_continue(rule, {0: {}}, 0)


def distribution_of(values: dict[str, Any]) -> Any:
    problems: list[tuple[str, str]] = []
    kind = DISTRIBUTIONS[values.get("distribution") or default_distribution(values) or ""]
    made = validated(kind, {"distribution": default_distribution(values), **values}, "p", problems)
    assert not problems, problems
    return made


def test_every_distribution_against_its_definition() -> None:
    stats = pytest.importorskip("scipy.stats")
    half = 0.3
    for name, options, expected in [
        ("normal", {"mu": 2, "sigma": 3}, stats.norm(2, 3).ppf(half)),
        (
            "log_normal",
            {"mu": 0.5, "sigma": 0.2},
            stats.lognorm(s=0.2, scale=math.exp(0.5)).ppf(half),
        ),
        ("beta", {"a": 2, "b": 5}, stats.beta(2, 5).ppf(half)),
        ("q_beta", {"a": 2, "b": 5, "q": 0.25}, 0.25),
        ("q_normal", {"mu": 2, "sigma": 3, "q": 0.5}, 0.5),
        ("q_log_normal", {"mu": 3.0, "sigma": 0.2, "q": 2}, 18),
    ]:
        assert distribution_of({"distribution": name, **options}).value_of(half) == pytest.approx(
            expected, rel=1e-9
        ), name
    assert distribution_of({"distribution": "log_uniform", "min": -2, "max": 0}).value_of(
        -1.0
    ) == math.exp(-1)
    assert (
        distribution_of({"distribution": "inv_log_uniform", "min": -2, "max": 0}).value_of(-1.0)
        == math.e
    )
    assert (
        distribution_of({"distribution": "q_log_uniform", "min": 0, "max": 3, "q": 1}).value_of(1.0)
        == 3
    )
    quarters = distribution_of({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25})
    assert quarters.grid() == [0, 0.25, 0.5, 0.75, 1]
    assert (
        distribution_of({"distribution": "log_uniform_values", "min": 0.1, "max": 1.0}).unit().log
    )
    assert (
        distribution_of(
            {"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 4}
        ).value_of(17.9)
        == 16
    )


def test_weighted_values_and_default_distributions() -> None:
    weighted = distribution_of({"values": ["a", "b", "c"], "probabilities": [0.2, 0.0, 0.8]})
    expected = ["a", "a", "c", "c", "c"]
    assert [weighted.value_of(drawn) for drawn in (0.0, 0.19, 0.2, 0.99, 1.0)] == expected
    kinds = [{"min": 1, "max": 3}, {"min": 1.0, "max": 3}, {"values": [1]}, {"value": 1}, {"mu": 1}]
    assert [default_distribution(kind) for kind in kinds] == [
        "int_uniform",
        "uniform",
        "categorical",
        "constant",
        None,
    ]
    assert set(DISTRIBUTIONS) == {kind for one in DISTRIBUTIONS.values() for kind in _names(one)}


def _names(kind: Any) -> tuple[str, ...]:
    from typing import get_args

    return tuple(get_args(kind.model_fields["distribution"].annotation))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(plain.filter(lambda value: len(str(value)) < 90))
def test_a_value_comes_back_the_same_from_its_override(value: Any) -> None:
    from metalearn.config.overrides import split

    path, back = split(override("a.b", value))
    assert path == ["a", "b"] and back == value and type(back) is type(value)


def test_leases_of_the_dead_the_living_and_the_silent(tmp_path: Path) -> None:
    mine, other = Leases(tmp_path), Leases(tmp_path)
    assert mine.is_free(3)
    assert mine.take(3) == 0
    assert mine.is_mine(3)
    assert not other.is_mine(3)
    assert not other.is_free(3)
    path = mine.path(3)
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "pid": 2**22 + 1}))  # no such process: dead at once
    assert other.is_free(3)
    path.write_text(json.dumps({**held, "began": "1"}))  # the number was given to another process
    assert other.is_free(3)
    path.write_text(json.dumps({**held, "machine": "elsewhere"}))
    assert not other.is_free(3)
    past = time.time() - EXPIRY - 1
    os.utime(path, (past, past))
    assert other.is_free(3) and other.take(3) == 1 and not mine.is_mine(3)
    mine.give_back(3)  # lost: not mine to give back
    assert other.is_mine(3)
    other.give_back(3)
    assert mine.is_free(3) and mine.take(3) == 1  # what was given back is no death
    path.write_text("{ torn")
    assert mine.is_free(3)


def test_a_trial_that_takes_three_processes_with_it_has_failed(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "deadly")))
    claim_folder(sweep, tmp_path / "out")
    for _ in range(3):
        trial = TrialQueue(sweep, tmp_path / "out").next()
        assert trial and trial.number == 0  # type: ignore[union-attr]
        path = Leases(tmp_path / "out" / "claims").path(0)
        path.write_text(json.dumps({**json.loads(path.read_text()), "began": "1"}))
    queue = TrialQueue(sweep, tmp_path / "out")
    trial = queue.next()
    assert trial and trial.number == 1 and queue.failures() == {0: "3 processes died in it"}  # type: ignore[union-attr]


def test_a_grid_goes_over_multiples_of_q_between_its_ends() -> None:
    for options, points in [
        ({"min": 0.05, "max": 0.5, "q": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"min": 1, "max": 10, "q": 4}, [4, 8]),
        ({"min": -1.0, "max": 1.0, "q": 0.5}, [-1.0, -0.5, 0.0, 0.5, 1.0]),
    ]:
        spread = distribution_of({"distribution": "q_uniform", **options})
        assert [spread.value_of(value) for value in spread.grid()] == pytest.approx(points)
    for options, word in [
        ({"min": 0.1, "max": 0.9, "q": 1}, "no multiple"),
        ({"min": 0, "max": 1e300, "q": 1}, "too small relative to"),
    ]:
        problems: list[tuple[str, str]] = []
        assert (
            validated(
                DISTRIBUTIONS["q_uniform"], {"distribution": "q_uniform", **options}, "p", problems
            )
            is None
        )
        assert word in problems[0][1]
    assert (
        distribution_of(
            {"distribution": "q_log_uniform", "min": 0, "max": 700, "q": 1e-9}
        ).value_of(700.0)
        > 1e300
    )


def test_a_file_server_that_does_not_answer_once_ends_no_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls, alive = os.utime, [0], threading.Event()

    def utime(path: Path) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(116, "Stale file handle")
        real(path)
        alive.set()

    monkeypatch.setattr(leases, "HEARTBEAT", 0.01)
    monkeypatch.setattr(leases.os, "utime", utime)
    mine = Leases(tmp_path)
    mine.take(0)
    with mine.heartbeat(0):
        assert alive.wait(60)


def test_dates_sets_and_bytes_are_refused_in_their_places(tmp_path: Path) -> None:
    path = swept(tmp_path, "dated", description="DAY", project="SET", command="BYTES", run_cap=0)
    text = path.read_text().replace("DAY", "2026-01-01").replace("SET", "!!set {a, b}")
    path.write_text(text.replace("BYTES", "[!!binary aGk=]").replace("0.1", "2026-01-01"))
    with pytest.raises(ConfigError) as refused:
        read(str(path))
    places = {place.rpartition(": ")[2] for place, _ in refused.value.problems}
    assert places >= {
        "description",
        "project",
        "command.0",
        "parameters.method.inner_lr.values.1",
        "run_cap",
    }


def test_a_journal_that_a_crash_tore_is_read(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "torn")))
    claim_folder(sweep, tmp_path / "out")
    queue = TrialQueue(sweep, tmp_path / "out")
    trial = queue.next()
    assert trial
    queue.finish(trial, 1.0, "complete")  # type: ignore[arg-type]
    with (tmp_path / "out" / "journal.log").open("a") as handle:
        handle.write('{"op_code":4,"worker_')
    written = queue.next()  # cuts the torn line off before it writes its own
    assert written and written.number == 1  # type: ignore[union-attr]
    queue.finish(written, 2.0, "complete")  # type: ignore[arg-type]
    assert [row["value"] for row in TrialQueue(sweep, tmp_path / "out").records()] == [1.0, 2.0]
    with (tmp_path / "out" / "journal.log").open("a") as handle:
        handle.write('{"op_code":4,"worker_')
    assert TrialQueue(sweep, tmp_path / "out").records() == queue.records() != []
    again = TrialQueue(sweep, tmp_path / "out").next()
    assert again and again.number == 2  # type: ignore[union-attr]


def test_a_late_result_of_a_lost_trial_is_not_told_twice(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "late")))
    claim_folder(sweep, tmp_path / "out")
    slow, quick = TrialQueue(sweep, tmp_path / "out"), TrialQueue(sweep, tmp_path / "out")
    slow_trial = slow.next()
    assert slow_trial and slow_trial.number == 0  # type: ignore[union-attr]
    path = slow.leases.path(0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "began": "1"}))
    quick_trial = quick.next()
    assert quick_trial and quick_trial.number == 0 and quick_trial.values == slow_trial.values  # type: ignore[union-attr]
    slow.finish(slow_trial, 5.0, "complete")  # type: ignore[arg-type]
    quick.finish(quick_trial, 4.0, "complete")  # type: ignore[arg-type]
    assert [row["value"] for row in quick.records()] == [4.0]


FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_shipped_sweep_files(file: Path) -> None:
    if (
        "omniglot" in file.stem
        and not (Path(os.environ.get("METALEARN_DATA", "")) / "omniglot28.npz").is_file()
    ):
        pytest.skip("omniglot28.npz is not prepared: set METALEARN_DATA")
    sweep = read(str(file))
    assert sweep.cap > 0 and sweep.parameters and sweep.data == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandb_own_schema_takes_what_is_run_here(file: Path) -> None:
    jsonschema, found = pytest.importorskip("jsonschema"), importlib.util.find_spec("sweeps")
    if found is None or not found.submodule_search_locations:
        pytest.skip("W&B's own engine holds the schema: pip install --no-deps sweeps")
    schema = Path(found.submodule_search_locations[0]) / "config" / "schema.json"
    rules, data = json.loads(schema.read_text()), yaml.safe_load(file.read_text())
    jsonschema.validate(data, rules)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "method": "guessing"}, rules)


def test_grid_and_random_search_need_no_metric(tmp_path: Path) -> None:
    assert read(str(swept(tmp_path, "free", metric=None))).metric.name == "valid/loss"
    unvalidated = sinusoid(run={"meta_steps": 4, "validate": {"every": None}})
    grid = swept(tmp_path, "unvalidated", unvalidated, metric=None)
    assert read(str(grid)).metric.name == "test/loss"
    early = {"type": "hyperband", "min_iter": 1}
    with pytest.raises(ConfigError, match="metric: is missing"):
        read(str(swept(tmp_path, "early", metric=None, early_terminate=early)))


def test_seeds_may_be_swept_one_by_one(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "seeds", parameters={"run.seeds": {"values": [11, 23]}})))
    assert [sweep.trial({"run.seeds": seed}).run.seeds for seed in (11, 23)] == [(11,), (23,)]


def test_max_iter_decides_beside_min_iter_as_in_wandb() -> None:
    both = EarlyTerminate(type="hyperband", min_iter=3, max_iter=27, s=2)
    assert both.bands(27) == [3, 9]


def test_problems_are_config_errors_without_a_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_cap.*is missing"):
        read(str(swept(tmp_path, "x", method="random")))


def test_trials_are_shown_in_the_project_of_the_file_and_one_group(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "shown", project="waves", entity="team")))
    track = with_group(sweep, sweep.experiment, tmp_path / "out").run.track
    expected = ("waves", "team", group_name("shown", tmp_path / "out"))
    assert (track.wandb.project, track.wandb.entity, track.wandb.group) == expected
    assert not track.terminal.on
    assert with_group(sweep, sweep.experiment, tmp_path / "out").hash() == sweep.experiment.hash()


@pytest.mark.parametrize("seeds,has_note", [([0], False), ([3, 4], True)])
def test_a_sweep_says_that_it_ran_one_seed_of_several(
    tmp_path: Path, seeds: list[int], has_note: bool
) -> None:
    file = swept(
        tmp_path, "x", sinusoid(run={"meta_steps": 4, "seeds": seeds, "validate": {"every": 2}})
    )
    claim_folder(read(str(file)), tmp_path / "out")
    assert (
        "every trial used only seed 3" in conclusion(read(str(file)), tmp_path / "out")
    ) is has_note


def test_a_trial_that_breaks_the_program_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def run(experiment: Any, folder: Path, *_: Any, **__: Any) -> dict[str, Any]:
        tried.append(int(folder.name))
        if folder.name == "0":
            raise RuntimeError("out of memory\nsecond line")
        if folder.name == "1" and len(tried) == 2:
            raise OSError(28, "No space left on device")
        return {"test": {"steps": [0], "loss": [2.0]}, "headline": {"step": 0}}

    monkeypatch.setattr(worker, "run_one", run)
    sweep = read(str(swept(tmp_path, "broken", metric={"name": "test/loss", "goal": "minimize"})))
    with pytest.raises(OSError, match="No space"):
        worker.work(sweep, tmp_path / "out")
    worker.work(sweep, tmp_path / "out")
    rows = TrialQueue(sweep, tmp_path / "out").records()
    assert tried == [0, 1, 1, 2, 3]
    assert [row["state"] for row in rows] == ["failed", *["complete"] * 3]
