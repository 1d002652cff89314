"""From run directories to one page that holds together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pages import check_page
from run_folders import METHODS, write_regression, write_rows, write_run

from metalearn.compare.comparison import Comparison
from metalearn.errors import ConfigError
from metalearn.report.figures import cost
from metalearn.report.figures.style import PALETTE, styles
from metalearn.report.matrices import paired_matrix
from metalearn.report.numbers import duration, score_interval
from metalearn.report.page import write_report
from metalearn.results import records
from metalearn.results.comparison import (
    collect,
    compare,
    update_comparison,
    write_comparison,
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("comparison"), list(METHODS), seeds=3)


def test_the_page_holds_together(comparison: Path) -> None:
    out = write_report([comparison], comparison / "report.html")
    page = check_page(out)
    for label in METHODS:
        assert label in page.text
    for words in (
        "proto_net has the best mean",
        "points above training from scratch",
        "after steps",
        "transductive",
        "Checks",
        "metalearn compare demo",
        "higher is better",
        "Finn et al. 2017",
        "torch: 2.13.0",
    ):
        assert words in page.text, words
    assert "demonstration" not in page.text
    names = [
        "break-even",
        "break-even-queries",
        "decision-flops",
        "decision-seconds",
        "flops",
        "pareto",
        "reached-flops",
        "reached-seconds",
        "seconds",
        "steps",
        "training",
        "tuning",
    ]
    assert sorted(file.stem for file in (comparison / "figures").iterdir()) == names
    assert out.stat().st_size < 2_000_000


def test_the_page_is_deterministic(comparison: Path, tmp_path: Path) -> None:
    first = write_report([comparison], tmp_path / "a" / "report.html").read_bytes()
    assert first == write_report([comparison], tmp_path / "b" / "report.html").read_bytes()


def test_a_demonstration_says_so_first(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    text = check_page(write_report([tmp_path], tmp_path / "report.html", demonstration=True)).text
    body = text[text.index("This is a demonstration, not a benchmark") :]
    assert "How fast is a new task learned?" in body
    assert "rankings do not carry over to longer schedules" in body and "do not rank" not in body


def test_a_malicious_label_is_text(tmp_path: Path) -> None:
    label = '<script>alert("x")</script>&$a$'
    write_run(tmp_path / "methods/bad/seed-0", label, "maml")
    write_run(tmp_path / "methods/scratch/seed-0", "scratch", "scratch")
    config = tmp_path / "methods/bad/seed-0/config.yaml"
    config.write_text(config.read_text() + "note: '</pre><script>alert(1)</script>'\n")
    page = check_page(
        write_report([tmp_path], tmp_path / "report.html", title="<b>bold</b> & more")
    )
    assert label in page.text and "b" not in page.tags


def test_one_run_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "maml", "maml")
    page = check_page(write_report([run], tmp_path / "out" / "report.html"))
    assert "maml reaches" in page.text and not (tmp_path / "out" / "figures").exists()
    assert "Paired differences" not in page.text


def test_with_one_seed_the_page_speaks_of_these_networks_only(tmp_path: Path) -> None:
    only = "With one training seed this holds for these trained networks only."
    write_rows(tmp_path / "one", ["maml", "scratch"])
    text = check_page(write_report([tmp_path / "one"], tmp_path / "one.html")).text
    assert only in text
    assert "Fewer than 3 seeds: intervals are over tasks and hold for these trained" in text
    assert "maml is better" not in text
    write_rows(tmp_path / "three", ["maml", "scratch"], seeds=3)
    text = check_page(write_report([tmp_path / "three"], tmp_path / "three.html")).text
    assert only not in text and "maml is better" in text


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"contrast": True, "p_holm": 0.01}, "better"),
        ({"contrast": True, "p_holm": 0.06}, "open"),
        ({"contrast": True, "p_holm": None}, "open"),  # too few seeds
        ({"contrast": False, "p_holm": None}, "open"),  # an estimate
        ({}, "better"),  # of an earlier version, by its interval
    ],
)
def test_only_a_tested_contrast_has_a_colour(more: dict[str, Any], kind: str) -> None:
    pair = {"a": "maml", "b": "scratch", "difference": 0.1, "ci95": [0.05, 0.15], **more}
    rows: Any = [SimpleNamespace(label=label) for label in ("maml", "scratch")]
    found = paired_matrix(rows, [pair], True)
    other = {"better": "worse", "open": "open"}[kind]
    assert [cell.kind for row in found.cells for cell in row] == ["none", kind, other, "none"]


def test_the_answer_has_the_interval_of_the_paired_difference(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=3)
    pair = json.loads(write_comparison(tmp_path).read_text())["paired"][0]
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert f"{100 * pair['difference']:.1f} points above training from scratch" in text
    low, high = (f"{100 * end:+.2f}" for end in pair["ci95"])
    assert f"95 % interval of the paired difference {low} to {high}" in " ".join(text.split())


def test_regression_runs(tmp_path: Path) -> None:
    for seed in range(3):
        write_regression(tmp_path / "maml" / f"seed-{seed}", "maml", seed=seed, exploding=4)
        write_regression(
            tmp_path / "pretrained" / f"seed-{seed}", "pretrained", "fine_tune", seed=seed
        )
    page = check_page(write_report([tmp_path], tmp_path / "report.html"))
    for words in (
        "squared error",
        "lower is better",
        "median task",
        "left out of the line of maml",
        "Tasks that diverged, %",
        "published",
    ):
        assert words in page.text, words
    assert "accuracy" not in page.text


def test_comparisons_and_loose_runs_share_a_page(tmp_path: Path) -> None:
    write_rows(tmp_path / "glyphs", ["maml", "scratch"])
    loose = write_regression(tmp_path / "sine", "maml")
    page = check_page(write_report([tmp_path / "glyphs", loose], tmp_path / "report.html"))
    assert "5-way 1-shot glyphs" in page.text and "5-shot sinusoid" in page.text
    assert (tmp_path / "figures" / "s0-steps.svg").exists()
    assert not (tmp_path / "figures" / "s1-steps.svg").exists()


def test_the_same_seed_twice_is_two_rows(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, "maml", "maml") for name in ("a", "b")]
    groups = records.group(records.load(run) for run in runs)
    assert len({group.label for group in groups}) == 2
    check_page(write_report(runs, tmp_path / "report.html"))


def test_every_bad_directory_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = write_run(tmp_path / "broken", "maml", "maml")
    (broken / "result.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        write_report([tmp_path / "empty", broken, tmp_path / "absent"], tmp_path / "report.html")
    places = [place for place, _ in caught.value.problems]
    assert len(places) == 3 and places[1].endswith("result.json")
    assert not (tmp_path / "report.html").exists()


def test_a_label_looks_the_same_in_every_report(comparison: Path) -> None:
    groups = records.group(records.load(path) for path in records.run_directories(comparison)[0])
    everything = styles(groups)
    assert len({(style.color, style.marker) for style in everything.values()}) == len(METHODS)
    for group in groups:
        assert styles([group])[group.label] == everything[group.label]


def test_a_method_of_another_package_says_what_it_is(tmp_path: Path) -> None:
    """Family and place in the palette stand in its result; an earlier result has those of the
    method that is registered under its name."""
    facts = {"method": "theirs", "family": "scratch", "place": 4, "acts_on_new_tasks": False}
    theirs = write_run(
        tmp_path / "methods/theirs/seed-0",
        "theirs",
        "scratch",
        change=lambda one: one.update(facts),
    )
    maml = write_run(tmp_path / "methods/maml/seed-0", "maml", "maml")
    run, known = records.load(theirs), records.load(maml)
    assert (run.family, run.palette_index, run.acts_on_new_tasks) == ("scratch", 4, False)
    expected = ("initialization", 0, True)
    assert (known.family, known.palette_index, known.acts_on_new_tasks) == expected
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "its mean difference from training from scratch, +" in text
    found = styles(records.group([run, known]))
    assert found["theirs"].dash == "--" and found["maml"].color == PALETTE[0]


def test_the_answer_says_where_training_from_scratch_diverged(tmp_path: Path) -> None:
    write_regression(tmp_path / "methods/maml/seed-0", "maml")
    folder = write_regression(tmp_path / "methods/scratch/seed-0", "scratch", "scratch")
    assert "tasks diverged)" not in check_page(write_report([tmp_path], tmp_path / "a.html")).text
    result = json.loads((folder / "result.json").read_text())
    result["test"]["diverged"] = [0.6] * len(result["test"]["steps"])
    (folder / "result.json").write_text(json.dumps(result))
    text = check_page(write_report([tmp_path], tmp_path / "b.html")).text
    assert "its mean difference from training from scratch, −" in text
    assert "; 60 % of its tasks diverged)" in text


def test_more_methods_than_colours_stay_apart(comparison: Path) -> None:
    """Colour and marker together name a method, and so do colour and line."""
    first = records.group(records.load(path) for path in records.run_directories(comparison)[0])[0]
    many = [dataclasses.replace(first, label=f"other {number:02}") for number in range(33)]
    found = styles(many).values()
    assert len({style.color for style in found}) == len(PALETTE)
    assert len({(style.color, style.marker) for style in found}) == len(many)
    assert len({(style.color, style.dash) for style in found}) == len(many)


def test_durations() -> None:
    shown = [
        duration(seconds) for seconds in (0.000085, 0.0123, 0.9999, 4.56, 119.0, 720.0, 11520.0)
    ]
    assert shown == ["85 µs", "12.3 ms", "1 s", "4.56 s", "119 s", "12 min", "3.2 h"]


def test_what_was_not_measured_is_no_zero(tmp_path: Path) -> None:
    def unmeasured(result: dict[str, Any]) -> None:
        result["cost"] = {
            "adapt": {"seconds_batched": None, "seconds_alone": None},
            "tune": {"seconds": 0},
        }

    run = write_run(tmp_path / "run", "maml", "maml", change=unmeasured)
    groups = records.group([records.load(run)])
    assert cost.cost_figure((groups, compare(groups)), "seconds") is None
    page = check_page(write_report([run], tmp_path / "report.html"))
    assert "It has no measured up-front cost." in page.text


def test_the_page_says_what_comparison_json_says(tmp_path: Path) -> None:
    """It reads the numbers and computes none, until the file is about other results."""
    write_rows(tmp_path, ["maml", "scratch"])
    file, out = write_comparison(tmp_path), tmp_path / "report.html"
    found = json.loads(file.read_text())
    found["summary"][0]["iqm"] = 0.123
    found["paired"][0]["difference"] = 0.4321
    file.write_text(json.dumps(found))
    text = check_page(write_report([tmp_path], out)).text
    assert "12.3" in text and "+43.21" in text
    update_comparison(tmp_path)
    assert json.loads(file.read_text()) == found
    write_run(tmp_path / "methods/reptile/seed-0", "reptile", "reptile")
    assert "+43.21" not in check_page(write_report([tmp_path], out)).text
    update_comparison(tmp_path)
    assert json.loads(file.read_text()) == collect(tmp_path)


def test_a_target_that_compare_was_given_appears_on_the_page(tmp_path: Path) -> None:
    """The file may hold no reason for it, as those of earlier versions do."""
    write_rows(tmp_path, ["maml", "scratch"], seeds=3)
    file, target = write_comparison(tmp_path), {"metric": "accuracy", "value": 0.5}
    found = json.loads(json.dumps(collect(tmp_path, target=target)))
    assert found["target"].pop("why") == "named in the experiment"
    file.write_text(json.dumps(found))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "50.0 % accuracy or better" in text and "named in the experiment" in text


def test_an_earlier_comparison_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=2)
    file = write_comparison(tmp_path)
    found = json.loads(file.read_text())
    later = list(found)[list(found).index("checks") + 1 :]
    file.write_text(json.dumps({key: found[key] for key in found if key not in later}))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert f"does not contain {', '.join(later)}: the parts that need them are left out" in text
    for name in ("solved", "break_even_lines", "equal_compute", "factors", "total_cost"):
        assert f"Not in this comparison.json: {name}." in text


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (None, "percentile bootstraps"),
        (1, "percentile bootstraps"),
        (2, "a break-even verdict for every pair"),
        (3, "symmetric, which is too narrow"),
        (4, "for the easiest level"),
        (5, "do not include the noise of timing"),
        (6, "decided by intervals of differences, tested or not"),
        (7, ""),
    ],
)
def test_an_earlier_comparison_says_by_which_rules_it_was_made(
    tmp_path: Path, rules: int | None, words: str
) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=2)
    file = write_comparison(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "rules": rules}))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert ("written by an earlier version" in text) == bool(words) and words in text
    assert "does not contain" not in text


def test_an_earlier_comparison_without_shares_at_every_level_is_shown(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=3)
    file = write_comparison(tmp_path)
    found = json.loads(file.read_text())
    for entry in found["solved"]:
        del entry["shares"]
    file.write_text(json.dumps({**found, "rules": 5}))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "tasks solved" in text


@pytest.mark.parametrize("tested", [True, False])
def test_the_matrix_says_by_what_its_cells_are_coloured(tmp_path: Path, tested: bool) -> None:
    write_rows(tmp_path, ["maml", "scratch", "proto_net"], seeds=2)
    file = write_comparison(tmp_path)
    found = json.loads(file.read_text())
    if not tested:
        for pair in found["paired"]:
            del pair["contrast"]
    file.write_text(json.dumps(found))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert ("the column is, by Holm’s p of a contrast" in text) == tested
    assert ("the column is, by a 95 % interval that excludes 0" in text) != tested


def test_a_damaged_comparison_is_refused_with_a_way_out(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    file = write_comparison(tmp_path)
    found = json.loads(file.read_text())
    for text in ("{", json.dumps({**found, "curves": [{"label": "maml", "steps": "many"}]})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="delete it"):
            write_report([tmp_path], tmp_path / "report.html")


def test_likelihood_and_calibration_stand_beside_accuracy(tmp_path: Path) -> None:
    def likely(result: dict[str, Any]) -> None:
        numbers = {"nll": 0.51, "nll_ci95": 0.02, "nll_left_out": 0.25, "calibration_error": 0.043}
        result["test"] |= {
            name: [value] * len(result["test"]["steps"]) for name, value in numbers.items()
        }

    write_rows(tmp_path, ["maml"], change=likely)
    write_rows(tmp_path, ["proto_net"])
    text = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "NLL<small>nats</small>" in text and "calibration<small>error, %</small>" in text
    assert "<td>0.510 ± 0.020 <small>without 25 %</small></td>" in text and "<td>4.3</td>" in text
    table = Comparison(tmp_path).table().splitlines()
    assert "NLL" in table[0] and any("0.510" in line and "4.3" in line for line in table)


@pytest.mark.parametrize(
    ("ends", "percent", "seeds", "shown"),
    [
        ((0.701, 0.756), True, (), "70.1 to 75.6"),
        ((0.981, 1.002), True, (), "98.1 to 100.0"),
        ((-0.125, 1.264), True, (), "wider than the scale"),
        ((-0.533, 1.2), False, (0.2, 0.3), "wider than the scale"),
        ((-0.533, 1.2), False, (-0.2, 0.3), "-0.533 to 1.20"),  # of a loss that may be negative
    ],
)
def test_no_interval_is_printed_beyond_the_scale(
    ends: Any, percent: bool, seeds: Any, shown: str
) -> None:
    assert score_interval(ends, percent, seeds) == shown


def test_a_seed_that_fails_is_shown_instead_of_an_interval(tmp_path: Path) -> None:
    for seed, method in enumerate(("maml", "maml", "scratch")):
        write_run(tmp_path / f"methods/maml/seed-{seed}", "maml", method, seed, episodes=40)
    write_rows(tmp_path, ["fine_tune"], seeds=2, episodes=40)
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "wider than the scale" in text and "assume that seeds and tasks vary roughly" in text
    assert "2 seeds" in text  # instead of an interval over new seeds
    assert "trial has the values of the file if the ranges contain them" in text
