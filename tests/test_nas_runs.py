"""Searches as rows of a comparison, from file to report: kills, controls, cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commandline import Commands, sinusoid, write

import metalearn as ml
from metalearn.compare.compare import compare
from metalearn.compare.controls import with_controls
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.nas.selection import candidates_on_queries

PER_TASK = {
    "name": "per_task_nas",
    "space": {"name": "mlp-reg"},
    "searcher": {"name": "evolution"},
    "candidates": 3,
    "search_steps": 2,
    "evaluate": {"episodes": 4},
}
SHARED = {
    "name": "shared_nas",
    "space": {"name": "mlp-reg"},
    "candidates": 3,
    "search_steps": 2,
    "search_tasks": 4,
    "score_tasks": 8,
    "adapt_steps": 1,
    "contains": {"name": "maml", "inner_lr": 0.01},
    "tune": {"inner_lr": {"min": 0.001, "max": 0.1, "distribution": "log_uniform"}},
}
FILE: dict[str, Any] = {
    **sinusoid(
        method=None,
        experiment="searches",
        run={"meta_steps": 6, "seeds": [0, 1], "validate": {"every": 10, "episodes": 2}},
    ),
    "methods": [{"name": "maml"}, PER_TASK, SHARED],
    "budget": {"trials": 2, "once": True},
}


@pytest.fixture(scope="module")
def finished(metalearn: Commands) -> Path:
    done = metalearn("compare", write(metalearn.folder, "searches", FILE))
    assert done.code == 0, done.err
    assert "added for per_task_nas: random search with as many candidates" in done.err
    return metalearn.folder / "runs" / "searches"


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def rows(finished: Path) -> dict[str, dict[str, Any]]:
    return {
        path.parent.name: result(path) for path in sorted((finished / "methods").glob("*/seed-0"))
    }


def test_every_row_and_every_control_is_there(finished: Path) -> None:
    labels = {
        "maml",
        "per_task_nas",
        "per_task_nas_random",
        "per_task_nas_mean",
        "shared_nas",
        "shared_nas_mean",
    }
    assert set(rows(finished)) == labels | {"scratch_tuned"}  # shared_nas searches at random itself
    comparison = json.loads((finished / "comparison.json").read_text())
    assert {row["label"] for row in comparison["rows"]} == set(rows(finished))
    page = (finished / "report.html").read_text()
    assert "first 4 tasks" in page and "Circles: the chosen candidates" in page
    assert "Missing controls" not in page


def test_a_search_is_on_the_bill_and_phases_add_up(finished: Path) -> None:
    for label, row in rows(finished).items():
        cost = row["cost"]
        assert (cost["search"]["seconds"] > 0 or "once" in cost["search"]) == ("nas" in label), (
            label
        )
        whole = json.loads((finished / "comparison.json").read_text())["checks"]
        sums = next(
            check for check in whole if check["name"] == "phases add up to the run's seconds"
        )
        # seconds between phases depend on the machine; none is counted twice
        assert sums["passed"] or "+" not in sums["why"], sums
    shared = rows(finished)["shared_nas"]["cost"]["search"]
    assert shared["candidates"] == 3 and shared["flops"] > 0 and shared["labels"] > 0


def test_the_found_network_is_what_is_trained_and_loaded(finished: Path) -> None:
    folder = finished / "methods" / "shared_nas" / "seed-0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    choice = json.loads((folder / "search" / "architecture.json").read_text())
    assert config["method"]["found"] == choice["genotype"]
    assert config["method"]["contains"]["name"] == "maml"
    run = ml.load_run(folder)
    episode = run.source.sample(ml.fold_in(1, "episodes"), 2)
    learned = run.method.learn(run.state.meta, episode.support, episode.query.x, (0, 1))
    assert learned.predictions.isfinite().all()


def test_what_candidates_were_worth_is_kept(finished: Path) -> None:
    with np.load(finished / "methods" / "per_task_nas" / "seed-0" / "selection.npz") as found:
        assert found["score"].shape == found["truth"].shape == (4, 3)
        assert np.isfinite(found["truth"]).all() and set(found["pick"].ravel()) <= {0.0, 1.0, 2.0}
    assert not (finished / "methods" / "per_task_nas_mean" / "seed-0" / "selection.npz").exists()


def test_of_a_halving_search_only_full_trainings_are_repeated_on_queries() -> None:
    """Candidates 3 and 4 were trained fully; what the others are worth would be of another kind."""
    source = ml.tasks.Sinusoid(shots=5).build()
    batch = source.sample(ml.fold_in(0, "episodes"), 2)
    share = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1]).expand(2, 5)
    genotypes = torch.arange(5)[None, :, None].expand(2, 5, 2)
    notes = {"trial_share": share, "trial_score": -torch.arange(10.0).reshape(2, 5)}
    notes |= {"trial_genotype": genotypes, "genotype": torch.tensor([[3, 3], [4, 4]])}
    trained = []

    def train(chosen: Any, support: Any, x: Any, points: Any, keys: Any, ledger: Any) -> Any:
        trained.append(chosen)
        return x[:, None] * 0 + chosen[0][0]  # [T, P, M, 1]: the candidate's number

    found = candidates_on_queries(
        train, source.spec, notes, lambda count: (batch, batch.info["key"]), 20, one_unit=False
    )
    assert trained == [[(3, 3)] * 2, [(4, 4)] * 2] and found is not None
    assert found["score"].tolist() == [[-3, -4], [-8, -9]]
    assert found["pick"].tolist() == [[0], [1]]
    losses = [((batch.query.y - n) ** 2).mean((1, 2)) for n in (3, 4)]
    assert found["truth"] == pytest.approx(-torch.stack(losses, 1).numpy())


def test_the_second_seed_takes_over_the_tuning_and_its_bill(finished: Path) -> None:
    home = finished / "methods" / "shared_nas"
    first, second = (result(home / f"seed-{seed}") for seed in (0, 1))
    assert second["tuned"]["from_seed"] == 0 and "from_seed" not in first["tuned"]
    assert second["tuned"]["inner_lr"] == first["tuned"]["inner_lr"]
    assert not list((home / "seed-1" / "tune").glob("[0-9]*"))  # nothing was trained for it again
    trials = json.loads((home / "seed-0" / "tune" / "trials.json").read_text())
    # they are in both costs, with each seed's own looks at validation tasks
    assert len(trials) == 2
    for one in (first, second):
        assert one["cost"]["tune"]["flops"] > sum(trial["cost"]["flops"] for trial in trials) > 0
    searched = [
        json.loads((home / f"seed-{seed}" / "search" / "architecture.json").read_text())
        for seed in (0, 1)
    ]
    assert searched[0]["trials"] == searched[1]["trials"] == 3  # but every seed searches anew


def test_seeds_draw_other_candidates_and_other_starts(finished: Path) -> None:
    home = finished / "methods" / "per_task_nas"
    one, two = (np.load(home / f"seed-{seed}" / "scores.npz")["loss"] for seed in (0, 1))
    assert one.shape == two.shape == (4, one.shape[1]) and not np.array_equal(one, two)
    notes = [np.load(home / f"seed-{seed}" / "notes.npz")["trial_genotype"] for seed in (0, 1)]
    assert not np.array_equal(*notes)


def test_a_search_that_was_killed_goes_on_and_pays_once(
    metalearn: Commands, finished: Path
) -> None:
    """Killed after a candidate: the resumed run finds the same, and counts every candidate once."""
    data = {**FILE, "experiment": "killed", "methods": [SHARED]}
    file = write(metalearn.folder, "killed", {**data, "run": {**FILE["run"], "seeds": [0]}})
    running = metalearn.start("compare", file, "--out", "killed")
    folder = metalearn.folder / "killed" / "methods" / "shared_nas" / "seed-0"
    record = folder / "search" / "search.jsonl"
    assert running.wait_for(lambda: record.exists() and record.read_text().count("\n") >= 1)
    running.kill()
    assert running.wait().code == -9
    assert (folder / "config.yaml").exists()  # written before the search began
    assert metalearn("compare", file, "--out", "killed").code == 0
    finished_run = finished / "methods" / "shared_nas" / "seed-0"
    one, two = (
        json.loads((home / "search" / "architecture.json").read_text())
        for home in (folder, finished_run)
    )
    assert one == two
    mine, other = (result(home)["cost"]["search"] for home in (folder, finished_run))
    for name in ("candidates", "flops", "labels", "gradient_steps"):
        assert mine[name] == other[name], name
    assert np.array_equal(
        *(np.load(home / "scores.npz")["loss"] for home in (folder, finished_run))
    )


def test_a_finished_search_is_paid_by_a_run_that_is_resumed_after_it(
    metalearn: Commands, finished: Path
) -> None:
    finished_run = finished / "methods" / "shared_nas" / "seed-0"
    folder = metalearn.folder / "again"
    shutil.copytree(finished_run, folder)
    for path in ("result.json", "scores.npz", "checkpoints", "timing.jsonl", "metrics.jsonl"):
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert metalearn("resume", folder).code == 0
    assert (
        result(folder)["cost"]["search"]["flops"] == result(finished_run)["cost"]["search"]["flops"]
    )


def test_the_file_is_not_changed_by_controls_that_it_names_itself() -> None:
    named = {**PER_TASK, "label": "named", "searcher": {"name": "random"}}
    mean = {**named, "label": "m", "candidates": 1}
    plan, notes = with_controls(parse({**FILE, "methods": [PER_TASK, named, mean]}))
    labels = [one.label for one in plan.experiments]
    assert labels == ["per_task_nas", "named", "m", "scratch_tuned"] and len(notes) == 1
    plan, notes = with_controls(parse({**FILE, "methods": [{"name": "maml"}]}))
    assert len(plan.experiments) == 1 and not notes


@pytest.mark.parametrize(
    ("method", "place", "hint"),
    [
        ({**SHARED, "contains": {"name": "mamal"}}, "contains.name", "did you mean 'maml'"),
        ({**SHARED, "contains": {"name": "scratch", "lr": 1}}, "contains.lr", "unknown key"),
        ({**SHARED, "contains": 3}, "contains", "must be a mapping"),
        (
            {**SHARED, "contains": {"name": "per_task_nas"}},
            "contains.name",
            "no model that a search can choose",
        ),
        ({**SHARED, "found": ["x"]}, "found", "list of integers"),
        ({**SHARED, "space": {"name": "mlp-rag"}}, "space", "mlp-reg"),
        (
            {**SHARED, "searcher": {"name": "evolution", "sampl": 3}},
            "searcher.sampl",
            "did you mean 'sample'",
        ),
        ({**PER_TASK, "contains": {"name": "maml"}}, "contains", "unknown key"),
        (
            {**PER_TASK, "evaluate": {"seed": 2}},
            "evaluate.seed",
            "cannot differ within a comparison",
        ),
    ],
)
def test_what_a_search_refuses(method: dict[str, Any], place: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({**FILE, "methods": [method]})
    assert any(place in where and hint in text for where, text in error.value.problems), (
        error.value.problems
    )


def test_a_genotype_of_another_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = parse({**FILE, "methods": [{**SHARED, "found": [0, 0, 99, 0, 0, 0]}]})
    with pytest.raises(ConfigError, match="found"):
        compare(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
