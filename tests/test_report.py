"""From run directories to comparison.json and one page: checks that fail on purpose, a page that
holds together.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import METHODS, write_regression, write_rows, write_run

from metalearn.errors import ConfigError
from metalearn.report.figures import cost
from metalearn.report.figures.style import PALETTE, styles
from metalearn.report.numbers import duration
from metalearn.report.page import write_report
from metalearn.results import records
from metalearn.results.comparison import (
    collect,
    compare,
    update_comparison,
    write_comparison,
)


class Page(HTMLParser):
    """Reads a page and remembers what does not close, what it would load, and its identifiers."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.words.append(" ")
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_page(path: Path) -> Page:
    """The conditions that every page meets."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.problems and not page.open
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.loads)
    assert all(link[1:] in page.ids for link in page.loads if link.startswith("#"))
    assert not {"script", "link", "iframe"} & page.tags
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert "nan" not in page.text.lower().split()
    return page


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("comparison"), list(METHODS), seeds=3)


def _check(root: Path, name: str) -> dict[str, Any]:
    return next(check for check in collect(root)["checks"] if check["name"] == name)


def test_comparison_is_schema_1(comparison: Path) -> None:
    found = json.loads(
        write_comparison(comparison).read_text(), parse_constant=lambda word: pytest.fail(word)
    )
    assert list(found) == [
        "schema",
        "rules",
        "rows",
        "summary",
        "paired",
        "contrasts",
        "target",
        "levels",
        "break_even",
        "break_even_common",
        "checks",
        "curves",
        "cost_curves",
        "solved",
        "break_even_lines",
        "total_cost",
        "equal_compute",
        "factors",
        "controls",
        "selection",
        "tuning",
    ]
    assert (found["schema"], found["target"]["metric"], len(found["break_even"])) == (
        1,
        "accuracy",
        30,
    )
    assert len(found["rows"]) == 18 and len(found["paired"]) == 15
    on_disk = json.loads((comparison / "methods/maml/seed-1/result.json").read_text())
    assert on_disk in found["rows"]
    for line in found["summary"]:
        assert {"label", "value", "ci95_tasks", "ci95_seeds", "auc", "iqm"} <= set(line)
    assert all(check["passed"] for check in found["checks"]), found["checks"]
    assert not list(comparison.glob(".*"))


def test_summary_is_what_the_scores_say(comparison: Path) -> None:
    found = {line["label"]: line for line in collect(comparison)["summary"]}
    values = [
        json.loads((comparison / f"methods/maml/seed-{s}/result.json").read_text())["headline"][
            "value"
        ]
        for s in range(3)
    ]
    assert found["maml"]["value"] == pytest.approx(np.mean(values))
    assert found["maml"]["ci95_seeds"] == pytest.approx(
        4.302652729 * np.std(values, ddof=1) / math.sqrt(3)
    )
    scores = [
        np.load(comparison / f"methods/maml/seed-{s}/scores.npz")["accuracy"][:, 4]
        for s in range(3)
    ]
    over_tasks = np.mean(scores, 0)
    assert found["maml"]["ci95_tasks"] == pytest.approx(
        1.963939 * over_tasks.std(ddof=1) / math.sqrt(600), rel=1e-4
    )
    assert found["proto_net"]["auc"] == pytest.approx(found["proto_net"]["value"], abs=1e-6)
    assert found["maml"]["auc"] < found["maml"]["auc_linear"]  # the early steps weigh more


def test_pairs_find_the_better_method(comparison: Path) -> None:
    pair = next(e for e in collect(comparison)["paired"] if {e["a"], e["b"]} == {"maml", "scratch"})
    assert pair["difference"] > 0.3 and pair["ci95"][0] > 0.25 and pair["p"] <= 0.001


def _edit(**parts: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for key, value in parts.items():
            result[key] = (
                {**result[key], **value} if isinstance(value, dict) and result[key] else value
            )

    return change


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("same new tasks", _edit(task={"shots": 5}), "differ"),
        (
            "same test episodes",
            _edit(episodes={"fingerprint": "e" * 64}),
            "eeeeeeeeeeee: maml seed 0",
        ),
        ("same normalisation policy", _edit(normalisation="running"), "running: maml"),
        ("few tasks diverged", _edit(test={"diverged": [0, 0, 0, 0, 0.04, 0.1]}), "maml 4.00%"),
        (
            "tuned values inside their range",
            _edit(tuned={"inner_lr": 0.99, "on_edge": ["inner_lr"]}),
            "inner_lr 0.99",
        ),
        ("at least 600 test episodes", _edit(episodes={"count": 599}), "599"),
    ],
)
def test_a_check_fails_on_purpose(tmp_path: Path, name: str, change: Any, why: str) -> None:
    write_rows(tmp_path, ["proto_net", "scratch"])
    assert _check(tmp_path, name)["passed"]
    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml", change=change)
    assert not _check(tmp_path, name)["passed"]
    assert why in _check(tmp_path, name)["why"]
    text = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "✗ failed" in text and name in text


def test_seeds_below_three_fail(tmp_path: Path, comparison: Path) -> None:
    assert _check(comparison, "at least 3 seeds")["passed"]
    assert not _check(write_rows(tmp_path, ["maml"], seeds=2), "at least 3 seeds")["passed"]


def test_a_leak_at_step_0_fails(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "proto_net"])
    assert _check(tmp_path, "step 0 is chance")["passed"]
    file = tmp_path / "methods/maml/seed-0/scores.npz"
    scores = dict(np.load(file))
    scores["accuracy"][:, 0] += 0.02  # standard error 0.0037
    np.savez(file, **scores)
    assert not _check(tmp_path, "step 0 is chance")["passed"]
    scores["accuracy"][:, 0] = 0.2  # always the same class: chance exactly, and no variance
    np.savez(file, **scores)
    assert _check(tmp_path, "step 0 is chance")["passed"]


def test_missing_training_curves_fail(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    found = _check(tmp_path, "train-task against validation-task curves")
    assert found["passed"] and re.search(r"maml \+\d\.\d points", found["why"])
    (tmp_path / "methods/maml/seed-0/metrics.jsonl").write_text("")
    assert not _check(tmp_path, "train-task against validation-task curves")["passed"]


def test_an_unfinished_row_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    (tmp_path / "methods/maml/seed-0/result.json").unlink()
    assert _check(tmp_path, "every row is finished")["why"] == "not finished: methods/maml/seed-0"
    (tmp_path / "methods/scratch/seed-0/result.json").unlink()
    with pytest.raises(ConfigError, match="no finished run"):
        collect(tmp_path)


def test_pairs_need_the_same_episodes(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"])
    write_run(
        tmp_path / "methods/maml/seed-0",
        "maml",
        "maml",
        change=_edit(episodes={"fingerprint": "e" * 64}),
    )
    (pair,) = collect(tmp_path)["paired"]
    assert pair["difference"] is None and "same test episodes" in pair["why"]


def test_undefined_numbers_are_none_and_counted(tmp_path: Path) -> None:
    for label, exploding in (("maml", 8), ("pretrained", 0)):
        write_regression(tmp_path / f"methods/{label}/seed-0", label, exploding=exploding)
    text = write_comparison(tmp_path).read_text()
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    row = next(row for row in found["rows"] if row["label"] == "maml")
    assert row["test"]["loss"][5] is None and row["test"]["diverged"][5] == pytest.approx(8 / 600)
    line = next(line for line in found["summary"] if line["label"] == "maml")
    assert (
        line["iqm"] is not None and line["value"] is not None
    )  # the headline is step 1, before they explode


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
        "flops",
        "pareto",
        "reached-flops",
        "reached-seconds",
        "seconds",
        "steps",
        "training",
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
        "Share of tasks that diverged",
        "published",
    ):
        assert words in page.text, words
    assert "accuracy" not in page.text


def test_comparisons_and_loose_runs_share_a_page(tmp_path: Path) -> None:
    write_rows(tmp_path / "glyphs", ["maml", "scratch"])
    loose = write_regression(tmp_path / "sine", "maml")
    page = check_page(write_report([tmp_path / "glyphs", loose], tmp_path / "report.html"))
    assert "5-way 1-shot glyphs" in page.text and "5-shot sinusoid" in page.text
    assert (tmp_path / "figures" / "s0-steps.svg").exists() and not (
        tmp_path / "figures" / "s1-steps.svg"
    ).exists()


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
    assert cost.seconds_figure((groups, compare(groups))) is None
    page = check_page(write_report([run], tmp_path / "report.html"))
    assert "It cost nothing measured beforehand." in page.text


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


def test_an_earlier_comparison_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"], seeds=2)
    file = write_comparison(tmp_path)
    found = json.loads(file.read_text())
    later = list(found)[list(found).index("checks") + 1 :]
    file.write_text(json.dumps({key: found[key] for key in found if key not in later}))
    text = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert f"does not hold {', '.join(later)}: what is made of them is left out" in text
    for name in ("solved", "break_even_lines", "equal_compute", "factors", "total_cost"):
        assert f"Not in this comparison.json: {name}." in text


def test_a_damaged_comparison_is_refused_with_a_way_out(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    file = write_comparison(tmp_path)
    found = json.loads(file.read_text())
    for text in ("{", json.dumps({**found, "curves": [{"label": "maml", "steps": "many"}]})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="delete it"):
            write_report([tmp_path], tmp_path / "report.html")
