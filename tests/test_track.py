"""Sinks: what they receive, that none stops or holds up a run, that an offline W&B run holds what
the report does."""

from __future__ import annotations

import json
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Commands, refused, sinusoid, write
from messages import collect_messages

from metalearn.config.experiment import parse
from metalearn.tracking import SINKS, by_wandb, tracker
from metalearn.tracking.sink import TrackedRun, scalars
from metalearn.tracking.tracker import Tracker, group_name, with_wandb_group

OFFLINE = {"WANDB_MODE": "offline", "WANDB_API_KEY": ""}
SHORT = {"meta_steps": 6, "validate": {"every": 3, "episodes": 4}}


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of the one offline run below a folder, read by W&B's own reader of its files."""
    import subprocess

    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    script = Path(sys.executable).with_name("wandb")
    output = subprocess.run(
        [script, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in output.stdout.splitlines()]


def offline_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """(what the run is, its summary, its history) of an offline run."""
    found = records(folder)
    run = next(record["run"] for record in found if record["type"] == "run")
    summary: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"].get("update") or {}
    history = [record["history"]["item"] for record in found if record["type"] == "history"]
    return run, summary, history


def media_of(folder: Path) -> set[str]:
    """The first words of the names of a run's tables, figures and pages."""
    files = folder.glob("wandb/offline-run-*/files/media/**/*")
    return {path.name.split("_")[0] for path in files if path.is_file()}


def test_an_offline_run_holds_what_the_run_directory_holds(metalearn: Commands) -> None:
    file = write(metalearn.folder, "one", sinusoid(run=SHORT))
    words = (
        "run.track.wandb.project=waves",
        "run.track.wandb.tags=[a]",
        "run.track.wandb.group=mine",
    )
    done = metalearn("train", file, *words, "--out", "one", env=OFFLINE)
    assert done.code == 0 and "warning" not in done.err, done.err
    folder = metalearn.folder / "one"
    result = json.loads((folder / "result.json").read_text())
    run, summary, history = offline_run(folder)
    assert (run["project"], run["run_group"], run["tags"]) == ("waves", "mine", ["a"])
    assert "maml" in run["display_name"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert run["config"]["update"]["method"] == config["method"]
    assert run["config"]["update"]["code"]["git"] == result["git"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 6
    for line in lines:  # every number of metrics.jsonl is a point of a curve
        point = {"step": line["step"], **scalars(line)}
        assert any(point.items() <= item.items() for item in history), point
    tested = [item for item in history if "test/loss" in item and "adapt_step" in item]
    losses = {item["adapt_step"]: item["test/loss"] for item in tested}
    assert losses == dict(zip(result["test"]["steps"], result["test"]["loss"]))
    assert summary["headline.value"] == summary["test/loss"] == result["headline"]["value"]
    assert summary["cost.meta_train.flops"] == result["cost"]["meta_train"]["flops"]
    assert {"test", "cost", "steps", "training"} <= media_of(folder)
    looks = {line["step"]: line["loss"] for line in lines if line.get("split") == "valid"}
    assert summary["valid/loss"] == looks[result["checkpoint_step"]]


def test_runs_of_a_comparison_share_a_group_and_its_report_is_there_too(
    metalearn: Commands,
) -> None:
    methods = [{"name": "maml"}, {"name": "scratch"}]
    data = {**sinusoid(method=None, experiment="pair", run=SHORT), "methods": methods}
    file = write(metalearn.folder, "pair", data)
    assert metalearn("compare", file, "--out", "pair", env=OFFLINE).code == 0
    folder = metalearn.folder / "pair"
    runs = [offline_run(folder / "methods" / label / "seed-0")[0] for label in ("maml", "scratch")]
    page, _, _ = offline_run(folder)
    assert {run["run_group"] for run in (*runs, page)} == {group_name("pair", folder)}
    assert page["job_type"] == "report"
    files = media_of(folder)
    assert {"report", "summary", "checks"} <= files and any("steps" in name for name in files)
    under_test = next(folder.glob("wandb/offline-run-*/files/media/html/report_*.html"))
    assert under_test.read_text() == (folder / "report.html").read_text()
    before = list(folder.glob("wandb/offline-run-*"))
    assert metalearn("compare", file, "--out", "pair", env=OFFLINE).code == 0
    # nothing new was run: nothing is sent
    assert list(folder.glob("wandb/offline-run-*")) == before


def test_a_key_and_no_server_is_one_warning_and_an_offline_run(metalearn: Commands) -> None:
    file = write(metalearn.folder, "dead", sinusoid(run=SHORT))
    env = {
        "WANDB_MODE": "",
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    done = metalearn("train", file, "--out", "dead", env=env)
    assert done.code == 0 and done.err.count("warning") == 1 and "wandb sync" in done.err, done.err
    result = json.loads((metalearn.folder / "dead" / "result.json").read_text())
    assert (
        offline_run(metalearn.folder / "dead")[1]["headline.value"] == result["headline"]["value"]
    )


def test_its_telemetry_is_off_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """W&B's own reporter of errors waits half a minute at the end of a process for a server that
    never answers."""
    name, seen = "WANDB_ERROR_REPORTING", list[str | None]()
    monkeypatch.setenv(name, "restored after the test")
    monkeypatch.delenv(name)
    fake = types.SimpleNamespace(
        Settings=dict, init=lambda **given: seen.append(os.environ.get(name))
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    by_wandb._open_run(
        by_wandb.WandB(), TrackedRun(tmp_path, "run", {}, {}, 0, print), "offline", {}
    )
    monkeypatch.setenv(name, "true")  # whoever wants it has it
    by_wandb._open_run(
        by_wandb.WandB(), TrackedRun(tmp_path, "run", {}, {}, 0, print), "offline", {}
    )
    assert seen == ["false", "true"]


def test_a_resumed_run_is_the_same_one_there(tmp_path: Path) -> None:
    first = by_wandb._run_id(tmp_path)
    assert by_wandb._run_id(tmp_path) == first and len(first) == 12
    assert by_wandb._run_id(tmp_path / "other") != first


@pytest.mark.parametrize(
    ("env", "mode", "wanted"),
    [
        ({}, "auto", "offline"),
        ({"WANDB_API_KEY": "k"}, "auto", "online"),
        ({}, "online", "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "online", "disabled"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "auto", "offline"),
        ({"WANDB_MODE": "online"}, "disabled", "offline"),
        ({}, "disabled", "disabled"),
    ],
)
def test_when_wandb_is_online(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, env: dict[str, str], mode: Any, wanted: str
) -> None:
    for name in (
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_BASE_URL",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert by_wandb.WandB(mode=mode).resolved_mode() == wanted
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 123")
    assert by_wandb.has_key()


class Recorder:
    """A sink that records its calls, and raises or hangs on demand."""

    def __init__(self, fails: str = "", hangs: threading.Event | None = None) -> None:
        self.calls: list[str] = []
        self.fails, self.hangs = fails, hangs

    def _record(self, name: str) -> None:
        if self.hangs is not None and name == "rows":
            self.hangs.wait()
        if name == self.fails:
            raise SystemExit(f"{name} failed")
        self.calls.append(name)

    def rows(self, rows: Any) -> None:
        self._record("rows")

    def result(self, result: Any) -> None:
        self._record("result")

    def page(self, folder: Any, page: Any) -> None:
        self._record("page")

    def close(self) -> None:
        self._record("close")


def tracker_of(monkeypatch: pytest.MonkeyPatch, messages: list[str], **sinks: Any) -> Tracker:
    def built(sink: Any) -> Any:
        def build(watched: TrackedRun) -> Any:
            if isinstance(sink, Exception):
                raise sink
            return sink

        return types.SimpleNamespace(build=build)

    monkeypatch.setattr(tracker, "SINKS", dict.fromkeys(sinks))
    options = types.SimpleNamespace(**{name: built(sink) for name, sink in sinks.items()})
    return Tracker(TrackedRun(Path("x"), "run", {}, {}, 0), options)


@pytest.mark.parametrize("where", ["rows", "result", "close"])
def test_a_sink_that_fails_is_one_warning_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    messages = collect_messages()
    good, bad = Recorder(), Recorder(fails=where)
    under_test = tracker_of(
        monkeypatch, messages, good=good, bad=bad, absent=ImportError("no package"), off=None
    )
    under_test.rows([{}])
    under_test.rows([{}])
    assert under_test.result({"a": 1}) == {"a": 1}
    under_test.close()
    assert good.calls == ["rows", "rows", "result", "close"]
    assert (
        len(messages) == 2 and "no package" in messages[0] and f"bad: {where} failed" in messages[1]
    )


def test_a_sink_that_hangs_holds_the_run_up_once_and_gets_everything_when_it_wakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = collect_messages()
    wake = threading.Event()
    monkeypatch.setattr(tracker, "LIMIT", 0.05)
    slow = Recorder(hangs=wake)
    under_test = tracker_of(monkeypatch, messages, slow=slow)
    for _ in range(20):
        under_test.rows([{}])  # comes back although the sink does not
    assert slow.calls == []
    monkeypatch.setattr(tracker, "LIMIT", 60.0)
    wake.set()
    under_test.close()
    assert slow.calls == ["rows"] * 20 + ["close"] and messages == []


def test_a_sink_that_never_answers_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = collect_messages()
    wake = threading.Event()
    monkeypatch.setattr(tracker, "LIMIT", 0.02)
    under_test = tracker_of(monkeypatch, messages, deaf=Recorder(hangs=wake))
    under_test.rows([{}])
    under_test.close()
    assert len(messages) == 1 and "deaf: not finished within" in messages[0]
    wake.set()


def test_only_the_first_of_several_processes_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recorder()
    monkeypatch.setenv("RANK", "1")
    under_test = tracker_of(monkeypatch, [], sink=sink)
    under_test.rows([{}])
    under_test.close()
    assert sink.calls == []


def test_the_terminal_line_and_its_switch(metalearn: Commands) -> None:
    file = write(metalearn.folder, "lines", sinusoid(run=SHORT))
    done = metalearn("train", file, "--out", "lines")
    looks = [line for line in done.err.splitlines() if "valid/loss" in line]
    assert [line.split(":")[0] for line in looks] == ["maml seed 0 step 3", "maml seed 0 step 6"]
    assert not (metalearn.folder / "lines" / "wandb").exists()  # disabled by the environment
    quiet = metalearn("train", file, "run.track.terminal.on=false", "--out", "quiet")
    assert quiet.code == 0 and "valid/loss" not in quiet.err
    same = [(metalearn.folder / name / "metrics.jsonl").read_bytes() for name in ("lines", "quiet")]
    assert same[0] == same[1]
    again = metalearn("train", file, "run.track.wandb.project=other", "--out", "lines")
    assert again.code == 0 and "skipped" in again.err  # how a run is watched is not what it is


def test_tensorboard_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    sink = SINKS["tensorboard"](on=True).build(TrackedRun(tmp_path, "run", {}, {}, 0, print))
    assert sink is not None
    sink.rows([{"kind": "train", "step": 3, "loss": 0.5}])
    test = {"steps": [0, 1], "accuracy": None, "loss": [2.0, 1.0]}
    sink.result({"test": test, "headline": {"value": 1.0}})
    sink.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(3, 0.5)]
    expected = [(0, 2.0), (1, 1.0)]
    assert [(event.step, event.value) for event in found.Scalars("test/loss")] == expected


def test_config_of_the_sinks(metalearn: Commands) -> None:
    file = write(metalearn.folder, "wrong", sinusoid(run=SHORT))
    words = (
        "run.track.wandb.mode=sometimes",
        "run.track.wandb.projct=x",
        "run.track.comet.on=true",
    )
    messages = ("'disabled'", "did you mean 'project'", "valid: tensorboard, terminal, wandb")
    refused(metalearn("train", file, *words), *messages)
    experiment = parse(sinusoid()).experiments[0]
    other = with_wandb_group(experiment, "g", project="p")
    assert other.run.track.wandb.group == "g" and other.hash() == experiment.hash()
    assert with_wandb_group(other, "h").run.track.wandb.group == "g"  # a group of its own is kept
