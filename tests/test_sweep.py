"""Sweeps: W&B's file, checked with its experiment; workers that are killed, stopped, added; what sweep.json says."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Commands, commands_in, files_of, refused, sinusoid, write
from hypothesis import given
from hypothesis import strategies as st
from sweep_kills import at_work, disturbed, sweep_of

from metalearn.errors import ConfigError
from metalearn.run.sweep.claims import SILENCE, Claims
from metalearn.run.sweep.desk import Desk, claim_folder
from metalearn.run.sweep.file import EarlyTerminate, override, read
from metalearn.run.sweep.hyperband import goes_on
from metalearn.run.sweep.spread import SPREADS, kind_of
from metalearn.run.validate import validated

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("sweep")) as commands:
        yield commands


def swept(folder: Path, name: str, experiment: Any = None, **keys: Any) -> Path:
    """A sweep file over a tiny experiment; each keyword replaces a key, None removes it."""
    short = sinusoid(run={"meta_steps": 4, "validate": {"every": 2, "episodes": 4}})
    write(folder, f"{name}-program", experiment or short)
    data: dict[str, Any] = {
        "program": f"{name}-program.yaml",
        "method": "grid",
        "metric": {"name": "valid/loss", "goal": "minimize"},
        "parameters": {"method.inner_lr": {"values": [0.01, 0.1]}, "method.inner_steps": {"values": [1, 2]}},
    }
    data |= keys
    return write(folder, name, {key: value for key, value in data.items() if value is not None})


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "sweep.json").read_text()))


def test_killed_workers_lose_nothing_and_make_nothing_twice(metalearn: Commands) -> None:
    file = sweep_of(metalearn.folder, 6)
    found = disturbed(metalearn, file, "killed", workers=3, kills=2)
    assert (found["killed"], found["taken_over"]) == (2, 2)
    assert [trial["number"] for trial in found["sweep"]["trials"]] == list(range(6))
    assert metalearn("sweep", file, "--out", "alone").code == 0
    assert told(metalearn.folder / "alone") == found["sweep"]  # the same values, and the same results to the last digit
    assert not list((metalearn.folder / "killed" / "claims").glob("*.json"))


def test_stopped_by_a_signal_and_given_again(metalearn: Commands) -> None:
    file = sweep_of(metalearn.folder, 3)
    worker = metalearn.start("sweep", file, "--out", "stopped")
    folder = metalearn.folder / "stopped"
    assert worker.wait_for(lambda: at_work(folder, worker))
    worker.kill(signal.SIGTERM)
    ended = worker.wait()
    assert ended.code == 75 and "give the sweep's command again" not in ended.out
    again = metalearn("sweep", file, "--out", "stopped")
    assert again.code == 0 and "going on from step" in again.err
    assert [trial["state"] for trial in told(folder)["trials"]] == ["complete"] * 3


def test_a_grid_is_gone_through_in_order_and_told_in_schema_1(metalearn: Commands) -> None:
    done = metalearn("sweep", swept(metalearn.folder, "grid"))
    assert done.code == 0 and "best: trial" in done.out, done.err
    folder = metalearn.folder / "runs" / "grid"
    found = told(folder)
    assert set(found) == {"schema", "metric", "best", "trials"} and found["schema"] == 1
    assert found["metric"] == {"name": "valid/loss", "goal": "minimize"}
    points = [(lr, steps) for lr in (0.01, 0.1) for steps in (1, 2)]
    assert [tuple(trial["parameters"].values()) for trial in found["trials"]] == points
    assert all(set(trial) == {"number", "parameters", "value", "state"} for trial in found["trials"])
    assert found["best"] == min(found["trials"], key=lambda trial: trial["value"])["number"]
    for trial in found["trials"]:
        run = folder / "trials" / str(trial["number"])
        config = yaml.safe_load((run / "config.yaml").read_text())["method"]
        assert (config["inner_lr"], config["inner_steps"]) == points[trial["number"]]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        looks = [row["loss"] for row in rows if row["kind"] == "valid" and row["split"] == "valid"]
        assert trial["value"] == min(looks) and (run / "result.json").exists()
    before = files_of(folder)
    assert metalearn("sweep", metalearn.folder / "grid.yaml").code == 0
    assert {name: data for name, data in files_of(folder).items() if "journal" not in name} == {
        name: data for name, data in before.items() if "journal" not in name
    }


def test_a_sweep_grows_and_other_sweeps_are_refused_its_folder(metalearn: Commands) -> None:
    keys: dict[str, Any] = {"method": "random", "parameters": {"method.inner_lr": {"min": 0.001, "max": 0.1}}}
    file = swept(metalearn.folder, "grows", run_cap=1, **keys)
    assert metalearn("sweep", file).code == 0
    first = told(metalearn.folder / "runs" / "grows")["trials"]
    assert metalearn("sweep", swept(metalearn.folder, "grows", run_cap=3, **keys)).code == 0
    assert told(metalearn.folder / "runs" / "grows")["trials"][:1] == first
    before = files_of(metalearn.folder / "runs" / "grows")
    keys["parameters"] = {"method.inner_lr": {"min": 0.001, "max": 0.2}}
    refused(metalearn("sweep", swept(metalearn.folder, "grows", run_cap=3, **keys)), "parameters", "--out")
    keys["parameters"] = {"method.inner_lr": {"min": 0.001, "max": 0.1}}
    other = swept(metalearn.folder, "grows", sinusoid(run={"meta_steps": 6}), run_cap=3, **keys)
    refused(metalearn("sweep", other), "experiment file")
    refused(metalearn("sweep", other, "--out", metalearn.folder / "runs"), "no sweep")
    assert files_of(metalearn.folder / "runs" / "grows") == before


def test_trials_that_fail_or_are_behind_say_so(metalearn: Commands) -> None:
    parameters = {"method.inner_lr": {"values": [0.01, 1e30, 0.02]}, "method.inner_steps": {"value": 2}}
    early = {"type": "hyperband", "min_iter": 1, "eta": 10}
    wild = swept(metalearn.folder, "wild", parameters=parameters, early_terminate=early)
    assert metalearn("sweep", wild).code == 0
    rows = told(metalearn.folder / "runs" / "wild")["trials"]
    assert [row["state"] for row in rows][:2] == ["complete", "failed"] and rows[1]["value"] is None
    file = swept(metalearn.folder, "target", metric={"name": "loss", "target": 1e9})
    assert metalearn("sweep", file).code == 0
    assert len(told(metalearn.folder / "runs" / "target")["trials"]) == 1  # reached: no new trial begins


def test_every_error_at_once_and_nothing_written(metalearn: Commands) -> None:
    parameters = {
        "method.inner_lr": {"min": 2, "max": 1.0},
        "method.inner_step": {"values": [1]},
        "task.shots": {"distribution": "gaussian"},
        "model": {"parameters": {"sizes": {"values": []}}},
        "a b": {"value": 1},
    }
    file = swept(
        metalearn.folder, "bad", parameters=parameters, method="annealing", metric={"name": "valid/los"},
        early_terminate={"type": "hyperband"}, run_cap=0, colour="blue",
    )  # fmt: skip
    before = files_of(metalearn.folder)
    words = ("parameters.method.inner_lr", "parameters.method.inner_step", "did you mean 'inner_steps'", "a b")
    more = ("gaussian", "model.parameters.sizes", "annealing", "valid/loss", "min_iter", "run_cap", "colour")
    refused(metalearn("sweep", file), *words, *more)
    assert files_of(metalearn.folder) == before


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"parameters": {"method.inner_lr": {"values": [0.1, "fast"]}}}, "'fast' is no legal value"),
        ({"parameters": {"method.inner_lr": {"min": -1.0, "max": 1.0}}, "method": "random", "run_cap": 2}, "greater"),
        ({"parameters": {"method.inner_lr": {"min": 0.1, "max": 1.0}}}, "gone through by a grid"),
        ({"method": "bayes"}, "run_cap"),
        ({"metric": {"name": "valid/accuracy", "goal": "maximize"}}, "no accuracy"),
        ({"metric": {"name": "valid/loss", "goal": "maximize"}}, "goal: minimize"),
        ({"metric": None}, "metric"),
        ({"program": "nowhere.yaml"}, "nowhere.yaml"),
        ({"program": None}, "experiment file"),
        ({"parameters": None}, "parameters"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}, "a.b": {"value": 1}}}, "twice"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}, "metric": {"name": "test/loss"}}, "looks"),
    ],
)  # fmt: skip
def test_one_wrong_key(metalearn: Commands, keys: dict[str, Any], word: str) -> None:
    refused(metalearn("sweep", swept(metalearn.folder, "one", **keys), "--out", "never"), word, "one.yaml")
    assert not (metalearn.folder / "never").exists()


def test_words_of_the_command(metalearn: Commands) -> None:
    file = swept(metalearn.folder, "words")
    refused(metalearn("sweep", file, "partition=gpu"), "--slurm")
    refused(metalearn("sweep", "nosuch"), "nosuch", "valid:")
    refused(metalearn("sweep", file, "--out", metalearn.folder / "words.yaml"), "is a file")


def test_no_label_of_a_test_task_chooses_unless_it_is_asked_for_and_then_it_is_said(metalearn: Commands) -> None:
    file = swept(metalearn.folder, "test", metric={"name": "test/loss"}, parameters={"task.shots": {"values": [5]}})
    done = metalearn("sweep", file)
    assert done.code == 0 and "chose on test tasks" in done.out
    result = json.loads((metalearn.folder / "runs" / "test" / "trials" / "0" / "result.json").read_text())
    assert told(metalearn.folder / "runs" / "test")["trials"][0]["value"] == result["headline"]["value"]


def test_workers_of_one_command(metalearn: Commands) -> None:
    file = sweep_of(metalearn.folder, 4)
    done = metalearn("sweep", file, "--workers", "2", "--out", "several", env={"PYTHONPATH": str(ROOT)})
    assert done.code == 0 and "4 trials: 4 complete" in done.out, done.err
    assert [trial["number"] for trial in told(metalearn.folder / "several")["trials"]] == [0, 1, 2, 3]


def test_workers_as_jobs_of_a_cluster(metalearn: Commands) -> None:
    pytest.importorskip("submitit", reason="--slurm needs submitit: pip install submitit")
    file = sweep_of(metalearn.folder, 3)
    words = ("--out", "jobs", "--workers", "2", "--slurm", "cluster=local", "timeout_min=5")
    done = metalearn("sweep", file, *words, env={"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    assert done.code == 0 and done.out.startswith("jobs: "), done
    folder = metalearn.folder / "jobs"
    numbers = done.out.split("\n")[0].split()[1:]
    assert len(numbers) == 2
    while not all((folder / "jobs" / f"{number}_0_result.pkl").exists() for number in numbers):
        time.sleep(0.1)
    said = "".join(path.read_text() for path in (folder / "jobs").glob("*.err"))
    assert [trial["state"] for trial in told(folder)["trials"]] == ["complete"] * 3, said
    refused(metalearn("sweep", file, "--out", "no", "--slurm", "partition"), "looks like")
    refused(metalearn("sweep", file, "--out", "no", "--slurm", "cluster=elsewhere"), "cluster=local")
    assert not (metalearn.folder / "no").exists()


def test_wandb_without_an_account_is_a_clear_sentence(metalearn: Commands, tmp_path: Path) -> None:
    file = sweep_of(metalearn.folder, 3)
    env = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": "offline", "NETRC": str(tmp_path / "netrc")}
    refused(metalearn("sweep", file, "--wandb", env=env), "wandb login", "leave --wandb out")


def test_hyperband_by_hand() -> None:
    rule = EarlyTerminate(type="hyperband", max_iter=5, eta=2, s=2)
    assert rule.bands(5) == [1, 2]
    assert EarlyTerminate(type="hyperband", min_iter=2, eta=3).bands(20) == [2, 6, 18, 54]
    curves = {0: [10, 9], 1: [10, 10], 2: [10, 8, 8], 3: [10, 7, 7], 4: [10, 6, 6]}  # W&B's own example
    seen = {number: dict(enumerate(curve, 1)) for number, curve in curves.items()}
    assert [goes_on(rule, seen, number) for number in (1, 2, 3)] == [False, True, True]
    back = {0: {1: 1.0, 2: 5.0}, 1: {1: 9.0, 2: 2.0}, 2: {1: 9.0, 2: 3.0}}
    loose = rule.model_copy(update={"strict": False})
    assert not goes_on(rule, back, 0) and goes_on(loose, back, 0)  # strict judges the value at the band
    assert goes_on(rule, {0: {}}, 0)


def spread_of(values: dict[str, Any]) -> Any:
    problems: list[tuple[str, str]] = []
    kind = SPREADS[values.get("distribution") or kind_of(values) or ""]
    made = validated(kind, {"distribution": kind_of(values), **values}, "p", problems)
    assert not problems, problems
    return made


def test_every_distribution_against_its_definition() -> None:
    stats = pytest.importorskip("scipy.stats")
    half = 0.3
    for name, options, expected in [
        ("normal", {"mu": 2, "sigma": 3}, stats.norm(2, 3).ppf(half)),
        ("log_normal", {"mu": 0.5, "sigma": 0.2}, stats.lognorm(s=0.2, scale=math.exp(0.5)).ppf(half)),
        ("beta", {"a": 2, "b": 5}, stats.beta(2, 5).ppf(half)),
        ("q_beta", {"a": 2, "b": 5, "q": 0.25}, 0.25),
        ("q_normal", {"mu": 2, "sigma": 3, "q": 0.5}, 0.5),
        ("q_log_normal", {"mu": 3.0, "sigma": 0.2, "q": 2}, 18),
    ]:
        assert spread_of({"distribution": name, **options}).of(half) == pytest.approx(expected, rel=1e-9), name
    assert spread_of({"distribution": "log_uniform", "min": -2, "max": 0}).of(-1.0) == math.exp(-1)
    assert spread_of({"distribution": "inv_log_uniform", "min": -2, "max": 0}).of(-1.0) == math.e
    assert spread_of({"distribution": "q_log_uniform", "min": 0, "max": 3, "q": 1}).of(1.0) == 3
    assert spread_of({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}).grid() == [0, 0.25, 0.5, 0.75, 1]
    assert spread_of({"distribution": "log_uniform_values", "min": 0.1, "max": 1.0}).latent().log
    assert spread_of({"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 4}).of(17.9) == 16
    weighted = spread_of({"values": ["a", "b", "c"], "probabilities": [0.2, 0.0, 0.8]})
    assert [weighted.of(drawn) for drawn in (0.0, 0.19, 0.2, 0.99, 1.0)] == ["a", "a", "c", "c", "c"]
    kinds = [{"min": 1, "max": 3}, {"min": 1.0, "max": 3}, {"values": [1]}, {"value": 1}, {"mu": 1}]
    assert [kind_of(kind) for kind in kinds] == ["int_uniform", "uniform", "categorical", "constant", None]
    assert set(SPREADS) == {kind for one in SPREADS.values() for kind in _names(one)}


def _names(kind: Any) -> tuple[str, ...]:
    from typing import get_args

    return tuple(get_args(kind.model_fields["distribution"].annotation))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(plain.filter(lambda value: len(str(value)) < 90))
def test_a_value_comes_back_the_same_from_its_override(value: Any) -> None:
    from metalearn.run.overrides import split

    path, back = split(override("a.b", value))
    assert path == ["a", "b"] and back == value and type(back) is type(value)


def test_claims_of_the_dead_the_living_and_the_silent(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.free(3) and mine.take(3) == 0 and mine.mine(3) and not other.mine(3) and not other.free(3)
    path = mine.path(3)
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "pid": 2**22 + 1}))  # no such process: dead at once
    assert other.free(3)
    path.write_text(json.dumps({**held, "began": "1"}))  # the number was given to another process
    assert other.free(3)
    path.write_text(json.dumps({**held, "machine": "elsewhere"}))
    assert not other.free(3)
    past = time.time() - SILENCE - 1
    os.utime(path, (past, past))
    assert other.free(3) and other.take(3) == 1 and not mine.mine(3)
    mine.drop(3, finished=False)  # lost: not mine to give back
    assert other.mine(3)
    other.drop(3, finished=False)
    assert mine.free(3) and mine.take(3) == 1  # what was given back is no death
    path.write_text("{ torn")
    assert mine.free(3)


def test_a_trial_that_takes_three_processes_with_it_has_failed(metalearn: Commands, tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "deadly")))
    claim_folder(sweep, tmp_path / "out")
    for _ in range(3):
        trial = Desk(sweep, tmp_path / "out").next()
        assert trial and trial.number == 0  # type: ignore[union-attr]
        path = Claims(tmp_path / "out" / "claims").path(0)
        path.write_text(json.dumps({**json.loads(path.read_text()), "began": "1"}))
    desk = Desk(sweep, tmp_path / "out")
    trial = desk.next()
    assert trial and trial.number == 1 and desk.failures() == {0: "3 processes died at it"}  # type: ignore[union-attr]


def test_a_journal_that_a_crash_tore_is_read(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "torn")))
    claim_folder(sweep, tmp_path / "out")
    desk = Desk(sweep, tmp_path / "out")
    trial = desk.next()
    assert trial
    desk.tell(trial, 1.0, "complete")  # type: ignore[arg-type]
    with (tmp_path / "out" / "journal.log").open("a") as handle:
        handle.write('{"op_code":4,"worker_')
    assert Desk(sweep, tmp_path / "out").records() == desk.records() != []
    again = Desk(sweep, tmp_path / "out").next()
    assert again and again.number == 1  # type: ignore[union-attr]


def test_a_late_result_of_a_lost_trial_is_not_told_twice(tmp_path: Path) -> None:
    sweep = read(str(swept(tmp_path, "late")))
    claim_folder(sweep, tmp_path / "out")
    slow, quick = Desk(sweep, tmp_path / "out"), Desk(sweep, tmp_path / "out")
    lost = slow.next()
    assert lost and lost.number == 0  # type: ignore[union-attr]
    path = slow.claims.path(0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "began": "1"}))
    taken = quick.next()
    assert taken and taken.number == 0 and taken.values == lost.values  # type: ignore[union-attr]
    slow.tell(lost, 5.0, "complete")  # type: ignore[arg-type]
    quick.tell(taken, 4.0, "complete")  # type: ignore[arg-type]
    assert [row["value"] for row in quick.records()] == [4.0]


FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_sweep_files_of_the_house(file: Path) -> None:
    if "omniglot" in file.stem and not (Path(os.environ.get("METALEARN_DATA", "")) / "omniglot28.npz").is_file():
        pytest.skip("omniglot28.npz is not prepared: set METALEARN_DATA")
    sweep = read(str(file))
    assert sweep.cap > 0 and sweep.parameters and sweep.data == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandb_own_schema_takes_what_is_run_here(file: Path) -> None:
    jsonschema, found = pytest.importorskip("jsonschema"), importlib.util.find_spec("sweeps")
    if found is None or not found.submodule_search_locations:
        pytest.skip("W&B's own engine holds the schema: pip install --no-deps sweeps")
    schema = Path(found.submodule_search_locations[0]) / "config" / "schema.json"
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(schema.read_text()))


def test_problems_are_config_errors_without_a_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_cap.*is missing"):
        read(str(swept(tmp_path, "x", method="random")))
