"""What a sceptical reader asks for: a test without transduction, minibatches counted as such, and
the protocol in one paragraph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Commands, commands_in, write
from run_folders import groups_of, write_rows

import metalearn as ml
from metalearn.algorithms import MAML, Reptile
from metalearn.evaluate.curves import learning_curve
from metalearn.report.page import write_report
from metalearn.results.checks import _check_pools
from metalearn.results.comparison import compare
from metalearn.run.loop import examples_of_task

GLYPHS = {"source": "glyphs", "ways": 3, "shots": 2, "queries": 4}


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("fairness")) as commands:
        yield commands


def glyphs(method: dict[str, Any], norm: str = "query_batch", **run: Any) -> dict[str, Any]:
    options = {"meta_steps": 4, "tasks_per_step": 2, "examples_per_step": 8, "executor": "vmap"}
    options |= {"threads": 1, "validate": {"every": None}, "track": {"wandb": {"mode": "disabled"}}}
    return {
        "experiment": "fair",
        "task": GLYPHS,
        "model": {"name": "conv4", "filters": 4, "downsample": "stride", "norm": norm},
        "method": method,
        "run": options | run,
        "evaluate": {"episodes": 12, "steps": [0, 1, 3], "chunk": 6, "headline_step": 3},
    }


def trained(metalearn: Commands, name: str, data: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    done = metalearn("train", write(metalearn.folder, name, data), "--out", name)
    assert done.code == 0, done.err
    folder = metalearn.folder / name
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return folder, found


# the inductive test


@pytest.mark.parametrize("name", ["maml", "proto_net", "fine_tune"])
def test_a_transductive_row_is_tested_by_the_support_set_too(
    metalearn: Commands, name: str
) -> None:
    """The same meta and tasks; the value is that of a method that was built for `support`, and no
    query has a say in the answer to another."""
    folder, found = trained(metalearn, name, glyphs({"name": name}))
    again = found["inductive"]
    assert (again["normalisation"], again["step"]) == ("support", 3) and found["transductive"]
    run = ml.load_run(folder)
    spec = run.source.spec
    learner = run.config.model.model_copy(update={"norm": "support"}).build(spec)
    method = run.config.method.build(learner, spec)
    curve = learning_curve(method, run.state.meta, run.source, (0, 3), 12, 1, chunk=6)
    assert again["value"] == pytest.approx(float(curve.mean[-1]), abs=1e-7)
    assert again["ci95"] == pytest.approx(float(curve.ci95[-1]), abs=1e-7)
    with np.load(folder / "inductive.npz") as stored:
        assert np.allclose(stored["scores"], curve.scores[:, -1].numpy())
    episode = run.source.sample(ml.fold_in(1, "episodes"), 1)
    whole = method.learn(run.state.meta, episode.support, episode.query.x, (3,)).predictions
    one = method.learn(run.state.meta, episode.support, episode.query.x[:, :1], (3,)).predictions
    assert torch.allclose(whole[:, :, :1], one, atol=1e-5)


def test_what_the_second_test_took_is_set_up_and_no_cost_of_the_row(metalearn: Commands) -> None:
    _, found = trained(metalearn, "cost", glyphs({"name": "maml"}))
    cost = found["inductive"]["cost"]
    assert cost["phase"] == "setup" and cost["flops"] > 0
    assert 0 < cost["seconds"] <= found["cost"]["setup"]["seconds"]
    _, plain = trained(metalearn, "plain", glyphs({"name": "maml"}, norm="support"))
    for phase in ("adapt", "meta_train"):
        assert found["cost"][phase]["gradient_steps"] == plain["cost"][phase]["gradient_steps"]
    assert plain["inductive"] is None and not plain["transductive"]
    assert not (metalearn.folder / "plain/inductive.npz").exists()


def test_a_search_on_every_task_is_not_repeated_and_says_so(metalearn: Commands) -> None:
    method = {"name": "per_task_nas", "space": {"name": "conv4-micro", "filters": 4}}
    data = glyphs(method | {"candidates": 2, "search_steps": 1})
    data["evaluate"]["episodes"] = 2
    _, found = trained(metalearn, "search", data)
    assert found["transductive"] and "search" in found["inductive"]["why"]
    assert "value" not in found["inductive"]


def with_inductive(root: Path, labels: list[str], lower: float) -> None:
    """Rows of which the inductive test scored lower by so much on every task."""
    for folder in root.glob("methods/*/seed-*"):
        if folder.parent.name in labels:
            file = folder / "result.json"
            result = json.loads(file.read_text())
            with np.load(folder / "scores.npz") as stored:
                place = result["test"]["steps"].index(result["headline"]["step"])
                scores = stored["accuracy"][:, place] - lower
            np.savez(folder / "inductive.npz", scores=scores)
            value = float(scores.mean())
            result["inductive"] = {"normalisation": "support", "value": value, "why": None}
            file.write_text(json.dumps(result))


def test_the_page_has_an_inductive_column_with_the_paired_difference(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "proto_net", "scratch"], seeds=3)
    with_inductive(tmp_path, ["maml", "scratch"], 0.125)
    found = {row["label"]: row for row in compare(groups_of(tmp_path))["inductive"]}
    assert set(found) == {"maml", "scratch"}
    assert found["maml"]["difference"] == pytest.approx(0.125, abs=1e-6)
    assert found["maml"]["ci95"] == pytest.approx([0.125, 0.125], abs=1e-6)
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "one query at a time" in page and "−12.5" in page
    (tmp_path / "methods/maml/seed-1/inductive.npz").unlink()
    broken = {row["label"]: row for row in compare(groups_of(tmp_path))["inductive"]}
    assert broken["maml"]["value"] is None and "not every seed" in broken["maml"]["why"]


# minibatches


def test_minibatches_are_counted_as_such() -> None:
    spec = ml.tasks.Sinusoid(shots=10, queries=5).build().spec
    assert examples_of_task(MAML(), spec) == (15, 15)
    assert examples_of_task(Reptile(inner_steps=3, inner_batch=2), spec) == (6, 6)
    assert examples_of_task(Reptile(inner_steps=3, inner_batch=8), spec) == (24, 10)
    assert examples_of_task(Reptile(inner_batch=None), spec) == (50, 10), "no query is read"
    own = SimpleNamespace(minibatches=(4, None), inner_steps=3)  # a method from elsewhere
    assert examples_of_task(own, spec) == (12, 10)


def test_minibatches_stand_in_the_ledger(metalearn: Commands) -> None:
    method = {"name": "reptile", "inner_steps": 2, "inner_batch": 2, "adapt_batch": 1}
    _, found = trained(metalearn, "reptile", glyphs(method))
    train, adapt = found["cost"]["meta_train"], found["cost"]["adapt"]
    assert (train["examples"], train["labels"]) == (4 * 2 * 2 * 2, 4 * 2 * 4)
    assert (adapt["gradient_steps"], adapt["examples"], adapt["labels"]) == (3, 3, 3)


# the protocol


def facts(root: Path) -> dict[str, str]:
    return {one["topic"]: one["text"] for one in compare(groups_of(root))["protocol"]}


def test_the_protocol_says_how_rows_were_made(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "fine_tune", "scratch"], seeds=3)
    more = "budget: {trials: 9, once: true}\nevaluate: {targets: [0.6, 0.8]}\n"
    for config in tmp_path.glob("methods/*/*/config.yaml"):
        config.write_text(config.read_text() + more)
    found = facts(tmp_path)
    assert found["seeds"] == "3 seeds per method" and found["test tasks"] == "600 tasks per method"
    assert found["levels"] == "0.6, 0.8" and "multiple of 1/75" in found["queries"]
    assert found["budget of tuning"].startswith("4 trials: ")  # those that were run
    assert found["budget of tuning"].endswith("intervals are conditional on this tuning")
    assert found["tuned"].startswith("inner_lr 0.001 to 1 (log): ")
    assert found["normalisation"] == "all methods: query_batch (transductive)"
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "Protocol" in page and "conditional on this tuning" in page


def test_the_protocol_names_the_seeds_that_differ(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=3)
    file = tmp_path / "methods/maml/seed-1/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalisation": "running"}))
    query_batch = "query_batch (transductive): maml (seeds 0, 2), scratch"
    expected = f"{query_batch}; running (transductive): maml (seed 1)"
    assert facts(tmp_path)["normalisation"] == expected


def test_the_protocol_says_how_seconds_were_measured(tmp_path: Path) -> None:
    """One seed per method in each round, or, in older comparisons, all of them in all."""
    write_rows(tmp_path, ["maml", "scratch"], seeds=2)
    older = "timed in 5 interleaved rounds over all methods, after training"
    assert facts(tmp_path)["seconds of new tasks"] == f"all methods: {older}"
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "medians of each seed" in page and "each with one seed per method" not in page
    for file in tmp_path.glob("methods/*/*/result.json"):
        data = json.loads(file.read_text())
        data["timing"]["of_seed"] = 2
        file.write_text(json.dumps(data))
    found = facts(tmp_path)["seconds of new tasks"]
    assert found == f"all methods: {older}, one seed per method in each round"
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "each with one seed per method" in page and "medians of each seed" not in page
    for file in tmp_path.glob("methods/*/*/result.json"):
        data = json.loads(file.read_text())
        data["timing"]["of_method"] = 5
        file.write_text(json.dumps(data))
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "medians over the rounds of all seeds" in page and "if a seed had several" not in page


def test_the_protocol_names_what_differs(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=2)
    files = [tmp_path / f"methods/maml/seed-{seed}/config.yaml" for seed in (0, 1)]
    for file in files:
        text = file.read_text().replace("task:\n  source: glyphs", "task: {shots: 10}")
        text = text.replace("run:\n", "run:\n  meta_steps: 60\n  tasks_per_step: 5\n")
        text = text.replace(
            "  name: maml\n", "  name: maml\n  outer: {lr: 0.01}\n  adapt_batch: 5\n"
        )
        file.write_text(text)
    result = tmp_path / "methods/scratch/seed-0/result.json"
    data = json.loads(result.read_text())
    data["episodes"]["count"] = 50
    result.write_text(json.dumps(data))
    found = facts(tmp_path)
    assert found["shots of training tasks"].endswith(" at test: maml")
    assert found["shots of training tasks"].startswith("10 in training")
    assert found["schedules"] == "60 steps of 5 tasks: maml"
    assert "outer.lr 0.01: maml" in found["not tuned"]
    assert found["minibatches"] == "5 support examples per step on a new task: maml"
    assert found["test tasks"] == "600 tasks per method; fewer: scratch 50"


def test_the_protocol_names_rows_whose_checkpoint_validation_tasks_choose(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "fine_tune", "scratch"])
    for config in tmp_path.glob("methods/*/*/config.yaml"):
        text = config.read_text()
        config.write_text(text.replace("run:\n", "run:\n  validate: {episodes: 40}\n"))
    file = tmp_path / "methods/fine_tune/seed-0/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "last"}))
    found = facts(tmp_path)["validation tasks"]
    expected = "40 tasks, which also choose the checkpoint: maml; 40 tasks: fine_tune, scratch"
    assert found == expected


# what an interval over tasks covers


def test_the_number_of_sets_of_classes_is_on_record(metalearn: Commands) -> None:
    data = glyphs({"name": "proto_net"})
    data["task"] = {"source": "digits", "ways": 2, "shots": 1, "queries": 2}
    data["model"] = {"name": "mlp", "sizes": [4]}
    _, found = trained(metalearn, "pool", {**data, "evaluate": {"episodes": 4, "steps": [0]}})
    assert found["facts"]["test_pool"] == 45  # pairs of ten digits


@pytest.mark.parametrize(("pool", "shown"), [(None, False), (100, False), (12, True)])
def test_tasks_that_repeat_groups_fail_a_check(pool: int | None, shown: bool) -> None:
    run: Any = SimpleNamespace(result={"facts": {"test_pool": pool}}, episodes=100)
    found = _check_pools([run])
    assert [check.passed for check in found] == [False] * shown
    assert not shown or "100 episodes are of 12 different groups" in found[0].why
