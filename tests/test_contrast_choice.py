"""Contrasts that were chosen after results are exploratory; the first sentence claims no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import check_page
from run_folders import groups_of, write_rows, write_run
from simulated import family

from metalearn.compare.compare import _write_request
from metalearn.config.experiment import Plan, parse
from metalearn.evaluate.random_effects import paired
from metalearn.report import page
from metalearn.report.page import write_report
from metalearn.results.comparison import collect, read_request
from metalearn.results.contrast_choice import contrast_choice
from metalearn.results.contrasts import DEFAULTS, mark_contrasts

LABELS = ["maml", "fine_tune", "scratch"]
TARGET = {"metric": "accuracy", "value": 0.3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    return write_rows(root, [*LABELS, "linear_probe"], 3, episodes=40)


def plan(contrasts: list[list[str]] | None, labels: list[str] = LABELS) -> Plan:
    named = {} if contrasts is None else {"contrasts": contrasts}
    return parse({"methods": [{"name": label} for label in labels], **named})


def request(contrasts: Any, finished: int | None, labels: list[str] = LABELS) -> dict[str, Any]:
    return {"contrasts": contrasts, "labels": labels, "finished": finished}


def test_a_request_keeps_the_first_contrasts_and_when_they_changed(tmp_path: Path) -> None:
    first, other = [["maml", "scratch"]], [["maml", "fine_tune"]]
    _write_request(plan(first), tmp_path)
    assert read_request(tmp_path)["requests"] == [request(first, 0)]
    for name in ("seed-0", "seed-1"):
        (tmp_path / "methods/maml" / name).mkdir(parents=True)
        (tmp_path / "methods/maml" / name / "result.json").write_text("{}")
    _write_request(plan(first), tmp_path)
    assert read_request(tmp_path)["requests"] == [request(first, 0)]
    _write_request(plan(other), tmp_path)
    _write_request(plan(other), tmp_path)
    found = read_request(tmp_path)
    assert found["requests"] == [request(first, 0), request(other, 2)]
    assert found["contrasts"] == other


def test_a_request_of_an_earlier_version_is_kept_without_a_time(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    older = {"contrasts": None, "labels": LABELS, "target": None}
    (tmp_path / "comparison-request.json").write_text(json.dumps(older))
    _write_request(plan(None), tmp_path)
    by_family = {**request(None, 0), "defaults": DEFAULTS}  # the pairs by family are others now
    assert read_request(tmp_path)["requests"] == [request(None, None), by_family]


def test_later_rules_add_no_contrasts_to_a_comparison_that_was_begun_before(tmp_path: Path) -> None:
    labels = ["maml", "caml", "scratch"]
    write_rows(tmp_path, ["maml", "scratch"], 3, episodes=40)
    family = {"family": "in_context"}
    for seed in range(3):
        path = tmp_path / f"methods/caml/seed-{seed}"
        write_run(path, "caml", "proto_net", seed, episodes=40, change=lambda r: r.update(family))
    groups, older = groups_of(tmp_path), request(None, 0, labels)
    found = contrast_choice(groups, {**older, "requests": [older]})
    assert found.pairs == [("maml", "scratch"), ("caml", "scratch")]
    now = {**request(None, 9, labels), "defaults": DEFAULTS}
    resumed = contrast_choice(groups, {**now, "requests": [older, now]})
    assert resumed.tested == found.tested and resumed.exploratory == [("maml", "caml")]
    fresh = {**now, "finished": 0}
    assert ("maml", "caml") in contrast_choice(groups, {**fresh, "requests": [fresh]}).tested
    assert ("maml", "caml") in contrast_choice(groups, {}).tested


def test_changed_contrasts_are_exploratory_and_have_no_verdict(rows: Path, tmp_path: Path) -> None:
    first, changed = [["maml", "scratch"]], [["fine_tune", "scratch"]]
    history = [request(first, 0), request(changed, 7)]
    file = rows / "comparison-request.json"
    file.write_text(json.dumps({**request(changed, None), "requests": history}))
    found = collect(rows, target=TARGET)
    assert found["contrasts"] == [*first, *changed]  # what was dropped is still tested
    marked = {(one["a"], one["b"]): one for one in found["paired"] if one["contrast"]}
    assert {key: one["exploratory"] for key, one in marked.items()} == {
        ("maml", "scratch"): False,
        ("fine_tune", "scratch"): True,
    }
    kept = marked["maml", "scratch"]
    assert kept["p_holm"] == pytest.approx(kept["p"])  # exploratory ones do not change it
    tested = [{row["a"], row["b"]} for row in found["break_even"] if row["contrast"]]
    assert tested and all(pair == {"maml", "scratch"} for pair in tested)
    text = check_page(write_report([rows], tmp_path / "report.html")).text
    assert "Chosen when 7 rows had finished, so exploratory: fine_tune − scratch." in text
    assert "Dropped later, but still tested: maml − scratch." in text
    assert "exploratory: chosen after results" in text and "fine_tune is better" not in text
    file.write_text(json.dumps(request(changed, None)))
    text = check_page(write_report([rows], tmp_path / "report.html")).text
    assert "Not recorded: whether they were chosen before any row had finished." in text


def test_contrasts_of_methods_that_were_added_are_tested(rows: Path) -> None:
    groups = groups_of(rows)
    before, after = ["fine_tune", "scratch"], ["fine_tune", "scratch", "maml"]
    history = [request(None, 0, before), request(None, 6, after)]
    found = contrast_choice(groups, {**request(None, None, after), "requests": history})
    assert ("maml", "scratch") in found.tested and not found.exploratory
    assert "Added with new methods when 6 rows had finished: maml − fine_tune" in found.note
    named = [request(None, 0, before), request([["maml", "scratch"]], 6, after)]
    found = contrast_choice(groups, {**request([["maml", "scratch"]], None), "requests": named})
    assert found.exploratory == [("maml", "scratch")]
    late = contrast_choice(groups, {"requests": [request([["maml", "scratch"]], 9)]})
    assert not late.tested and "all are exploratory" in late.note


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_best_of_equal_methods_is_seldom_said_to_be_above(seeds: int) -> None:
    """24 equal methods, the last of which is scratch, with 5 contrasts; by its own interval the
    best is above scratch in 14 (3 seeds) and 19 % (5 seeds) of comparisons."""
    generator, repeats, said = np.random.default_rng([3, seeds]), 60, 0
    for _ in range(repeats):
        methods = family(generator, 24, seeds)
        best = int(np.argmax([method.mean() for method in methods]))
        if best == 23:
            continue
        entries = []
        for other in {*range(5), best}:
            found = paired(methods[other], methods[23])
            entry: dict[str, Any] = {"a": str(other), "b": "23", "p": found.p}
            entries.append(entry | {"difference": found.value, "ci95": found.ci95, "seeds": [0]})
        marked = mark_contrasts(entries, [(str(n), "23") for n in range(5)])
        pairs = {frozenset((one["a"], one["b"])): one for one in marked}
        margin = page._margin(str(best), "23", pairs)
        said += margin is not None and margin["reading"] == "different"
    assert said / repeats <= 0.05


def test_an_untested_difference_from_scratch_is_said_to_be_untested(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=3, episodes=40)
    untested = {**request([], None), "requests": [request([], 0)]}
    (tmp_path / "comparison-request.json").write_text(json.dumps(untested))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "points above training from scratch" not in text
    assert "its mean difference from training from scratch, +" in text and "was not tested" in text
