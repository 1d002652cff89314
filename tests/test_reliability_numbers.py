"""Losses that are not finite, and run directories of older formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Commands, Ended, files_of, refused, sinusoid, write
from kills import going_on, last, newest, planted, same_end
from test_reliability import OLD, SPOILED, STEPS

import metalearn as ml
from metalearn.executors import nonfinite
from metalearn.rng import fold_in
from metalearn.storage import checkpoint


def spoiled(metalearn: Commands, policy: str, folder: Path, fault: str = "") -> Ended:
    data = sinusoid(run={**STEPS, "on_nan": policy, "executor": "loop"})
    file = write(metalearn.folder, policy, data)
    return metalearn(*going_on(folder, file), before=SPOILED + fault)


def nan_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nan.jsonl").read_text().splitlines()]


def test_raise_ends_the_run_and_names_the_tasks(metalearn: Commands) -> None:
    folder = metalearn.folder / "raised"
    ended = spoiled(metalearn, "raise", folder)
    assert (
        ended.code == 3
        and "query_loss not finite at step 7" in ended.err
        and "nan.jsonl" in ended.err
        and "the checkpoints before it are in" in ended.err
    ), ended
    (row,) = nan_lines(folder)
    assert row["policy"] == "raise" and [batch["step"] for batch in row["batches"]] == [6, 7]
    source = ml.tasks.Sinusoid(shots=5, queries=5).build()
    tasks = source.sample(fold_in(row["seed"], "train", row["batches"][1]["number"]), 4)
    assert tasks.info["key"].tolist() == row["batches"][1]["keys"]  # found again by its number
    assert newest(folder) == 4 and not (folder / "result.json").exists()


def test_skip_goes_on_and_survives_a_kill(metalearn: Commands) -> None:
    whole, broken = metalearn.folder / "skip", metalearn.folder / "skip-killed"
    ended = spoiled(metalearn, "skip", whole)
    assert ended.code == 0, ended
    (row,) = nan_lines(whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert row["step"] == 7 and row["batches"][1]["step"] == 7
    assert [line["step"] for line in lines if line.get("skipped")] == [8]
    assert all(line.get("query_loss", 0) is not None for line in lines)
    assert spoiled(metalearn, "skip", broken, planted("checkpoints", 8 * 4 + 2)).code == -9
    assert spoiled(metalearn, "skip", broken).code == 0
    same_end(broken, whole)
    assert nan_lines(broken) == nan_lines(whole)


def test_rollback_is_refused_with_what_there_is(metalearn: Commands, tmp_path: Path) -> None:
    ended = spoiled(metalearn, "rollback", tmp_path / "rollback")
    refused(ended, "run.on_nan", "skip", "raise")
    assert not (tmp_path / "rollback").exists()


def test_a_run_that_was_rolled_back_is_not_resumed(metalearn: Commands, tmp_path: Path) -> None:
    folder = copied("interrupted", tmp_path)
    row = {"step": 1, "policy": "rollback", "first_bad": 2, "attempt": 1}
    (folder / "nan.jsonl").write_text(json.dumps(row) + "\n")
    refused(metalearn("resume", folder), "nan.jsonl", "rolled back", "run.on_nan=skip")


def test_a_skipped_step_changes_nothing_but_the_count() -> None:
    source = ml.tasks.Sinusoid(shots=5, queries=4).build()
    method = ml.algorithms.Reptile(inner_steps=1).build(
        ml.models.MLP(sizes=(6,)).build(source.spec), source.spec, 9
    )
    assert method.step is not None
    good, lanes = source.sample(fold_in(0, "train"), 1), method.init(fold_in(0, "init"))
    bad = good._replace(support=good.support._replace(y=good.support.y * float("inf")))
    for data, left_out in ((bad, 1.0), (good, 0.0)):
        after, metrics = nonfinite.skip_nonfinite(method.step)(lanes, data)
        assert float(metrics["skipped"]) == left_out and float(after.step) == 1
        moved = [not torch.equal(a, b) for a, b in zip(after.meta.values(), lanes.meta.values())]
        assert any(moved) == (left_out == 0.0)
        assert torch.equal(after.lanes["count"], lanes.lanes["count"]) == (left_out == 1.0)


def test_means_leave_skipped_steps_out_and_bad_ones_are_named() -> None:
    def rows(*values: tuple[float, float]) -> list[tuple[int, dict[str, torch.Tensor]]]:
        named = [{"loss": torch.tensor(loss), "skipped": torch.tensor(out)} for loss, out in values]
        return list(enumerate(named, 5))

    means, steps = nonfinite.summary(rows((1.0, 0.0), (0.0, 1.0), (3.0, 0.0)))
    assert means["loss"] == pytest.approx(2.0)
    assert means["skipped"] == pytest.approx(1 / 3)
    assert steps == [6]
    for bad in (rows((0.0, 1.0)), rows((float("nan"), 0.0))):
        with pytest.raises(nonfinite.NotFinite, match="loss not finite at step 5"):
            nonfinite.summary(bad)


# old formats


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(OLD / name, folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["finished", "tuned_finished"])
def test_a_finished_run_of_schema_1_is_known_and_opened(
    metalearn: Commands, tmp_path: Path, name: str
) -> None:
    folder = copied(name, tmp_path)
    before = files_of(folder)
    assert "finished" in metalearn("resume", folder).err
    if name == "finished":  # its hash is what it was; the other was to be rolled back
        done = metalearn("train", folder / "config.yaml", "--out", folder)
        assert "finished" in done.err
    assert files_of(folder) == before
    assert metalearn("evaluate", folder).code == 0
    assert metalearn("report", folder, "--out", tmp_path / "page.html").code == 0
    stored = json.loads((folder / "result.json").read_text())
    again = json.loads((folder / "evaluations" / "1.json").read_text())
    assert again["test"]["loss"] == pytest.approx(stored["test"]["loss"], rel=1e-4)
    assert again["episodes"] == stored["episodes"]
    assert int(ml.load_run(folder).state.step) == stored["checkpoint_step"]


@pytest.mark.parametrize(
    ("name", "step", "end"),
    [("interrupted", 3, ("finished", 6)), ("tuned_interrupted", 9, ("tuned_continued", 12))],
)
def test_an_interrupted_run_of_schema_1_is_resumed(
    metalearn: Commands, tmp_path: Path, name: str, step: int, end: tuple[str, int]
) -> None:
    """`tuned_*` were written by commit 58cc996, with the policy `rollback`."""
    folder = copied(name, tmp_path)
    done = metalearn("resume", folder)
    assert done.code == 0 and f"resuming from step {step}" in done.err, done
    old = checkpoint.read(checkpoint.path_of(OLD / end[0] / "checkpoints", end[1]))
    torch.testing.assert_close(last(folder)[1], old, rtol=1e-4, atol=1e-5)
