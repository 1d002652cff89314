"""Experiment files of comparisons, tuning, and what must not give a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import sinusoid, write
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import COMPARISON, again, one, places, problems_of

from metalearn.config.experiment import Plan, load, parse
from metalearn.config.overrides import apply_overrides
from metalearn.config.registry import TABLES
from metalearn.errors import ConfigError


def test_a_comparison_its_labels_and_overlays() -> None:
    plan = parse(COMPARISON)
    first, second, third = plan.experiments
    assert plan.comparison and [e.label for e in plan.experiments] == ["maml", "first", "reptile"]
    assert first.run.meta_steps == 1000 and second.run.meta_steps == 7
    assert (third.task.shots, third.task.queries) == (10, 0)
    assert (third.model.norm, third.model.filters) == ("running", 8)
    # the test is the same
    assert {(e.test_task.shots, e.test_task.queries) for e in plan.experiments} == {(1, 5)}
    for experiment in plan.experiments:
        assert again(experiment).resolved() == experiment.resolved()


def test_overrides_reach_the_methods_of_a_comparison() -> None:
    words = [
        "methods.first.inner_lr=0.1",
        "methods.reptile.run.meta_steps=5",
        "methods.maml.name=anil",
    ]
    data, notes = apply_overrides(COMPARISON, [*words, "run.seeds=[4]"])
    first, second, third = parse(data).experiments
    assert (first.method.name, first.label, first.method.inner_lr) == ("anil", "maml", 0.1)
    assert (second.method.inner_lr, third.run.meta_steps, third.run.seeds) == (0.1, 5, (4,))
    assert notes == ["methods.maml.name=anil drops the file's inner_lr"]
    for override in (
        "method.inner_lr=1",
        "methods.mamll.inner_lr=1",
        "methods.maml=1",
        "methods=3",
    ):
        with pytest.raises(ConfigError):
            parse(apply_overrides(COMPARISON, [override])[0])
    with pytest.raises(ConfigError, match="labels: maml, first, reptile"):
        apply_overrides(COMPARISON, ["method.inner_lr=1"])


def test_an_overlay_with_another_source_or_model_takes_none_of_the_bases_keys() -> None:
    base = {
        "task": {"source": "sinusoid", "noise": 0.1},
        "evaluate": {"task": {"source": "glyphs", "ways": 3}},
    }
    found = one(base)
    assert found.task.noise == 0.1
    assert (found.test_task.source, found.test_task.ways) == ("glyphs", 3)
    item = {"name": "maml", "task": {"source": "sinusoid"}, "model": {"name": "mlp"}}
    made = parse({**COMPARISON, "methods": [item]}).experiments[0]
    expected = ("sinusoid", "mlp", "glyphs")
    assert (made.task.source, made.model.name, made.test_task.source) == expected


def test_wrong_comparisons() -> None:
    twice = {
        **COMPARISON,
        "methods": [{"name": "maml"}, {"name": "maml", "inner_lr": 0}, {"name": "anil", "ways": 3}],
    }
    assert places(twice) == ["methods.maml.inner_lr", "methods.anil.ways", "methods.maml"]
    assert "different `label`" in dict(problems_of(twice))["methods.maml"]
    empty: tuple[Any, ...] = ([], None, {}, 3, "maml", [3], [[]])
    for methods in empty:
        assert places({"methods": methods}) == ["methods"], methods
    assert places({"methods": [{}], "method": {}}) == ["method"]
    assert places({"methods": [{"label": "a/b"}]}) == ["methods.a/b.label"]
    assert places({"methods": [{"task": 3}]}) == ["methods.maml.task"]
    unlabelled = parse(
        {"methods": [{"name": "maml", "label": None}, {"name": "anil", "label": None}]}
    )
    assert [e.label for e in unlabelled.experiments] == ["maml", "anil"]


def test_published_curves_and_a_tuned_headline() -> None:
    found = one(
        sinusoid(
            published={"curve": {1: 0.67, 5: 0.38}, "source": "x"},
            evaluate={"headline_step": "tuned"},
        )
    )
    assert found.published is not None and found.published.curve == {1: 0.67, 5: 0.38}
    assert found.evaluate.headline == "tuned" and again(found).published == found.published
    assert one(sinusoid()).evaluate.headline == 3


@pytest.mark.parametrize(
    ("tune", "place"),
    [
        ({"inner_lrr": [1]}, "inner_lrr"),
        ({"inner_lr": {"min": 1, "max": 0.1}}, "inner_lr"),
        ({"inner_lr": {"min": 0.1}}, "inner_lr"),
        ({"inner_lr": {"min": 0, "max": 1}}, "inner_lr"),  # 0 is no legal step size
        ({"inner_lr": {"min": 0.1, "max": 1, "distribution": "normal"}}, "inner_lr.distribution"),
        ({"inner_lr": {"min": 0.1, "max": 1, "distribution": "categorical"}}, "inner_lr"),
        ({"inner_lr": {"values": [0.1, "fast"]}}, "inner_lr"),
        ({"inner_lr": {"values": [0.1], "min": 0.1}}, "inner_lr"),
        ({"inner_lr": []}, "inner_lr"),
        ({"first_order": {"min": 0, "max": 1}}, "first_order"),
        ({"inner_steps": {"min": 1, "max": 1.5}}, "inner_steps"),
        ({"name": ["maml", "anil"]}, "name"),
    ],
)
def test_tune_ranges_that_cannot_be_searched(tune: dict[str, Any], place: str) -> None:
    found = places(sinusoid(method={"tune": tune}, budget={"trials": 2}))
    assert found and all(where.startswith(f"method.tune.{place}") for where in found), found


def test_tune_ranges() -> None:
    tune = {
        "inner_lr": {"min": "1e-3", "max": 1, "distribution": "log_uniform"},
        "inner_steps": {"min": 1, "max": 5},
    }
    found = one(sinusoid(method={"tune": tune}, budget={"trials": 2}))
    assert found.tune["inner_lr"].min == 0.001 and again(found).resolved() == found.resolved()
    assert places(sinusoid(method={"tune": tune})) == ["budget.trials"]
    assert places(sinusoid(method={"tune": 3})) == ["method.tune"]


def test_experiments_are_found_by_name_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("maml_sinusoid").name == "maml_sinusoid"
    with pytest.raises(ConfigError, match="did you mean 'maml_sinusoid'"):
        load("maml_sinusoit")
    for content in (
        "a: [",
        "- 1",
        "3",
        "",
        "a: b: c",
        "\x00",
        "d: 2001-99-99",
        "a: 0b_",
        "&a [*a]",
    ):
        with pytest.raises(ConfigError, match=r"own\.yaml"):
            load(str(write(tmp_path, "own", content)))
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"own\.yaml"):
        load("own.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        load(str(tmp_path))


NAMES = """task model method methods run evaluate budget published name source label tune validate
outer seeds
steps start glyphs sinusoid maml mlp target curve min"""
WORDS = st.sampled_from(NAMES.split())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | WORDS
    | st.dates()
)
KEYS = WORDS | st.integers(0, 2) | st.none() | st.booleans()
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
DOTTED = st.lists(WORDS | st.text("a0.=", max_size=2), min_size=1, max_size=4).map(".".join)
VALUES = DATA.map(lambda value: yaml.safe_dump(value, default_flow_style=True)) | st.text(
    max_size=8
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(KEYS, DATA, max_size=5),
    st.lists(st.builds("{}={}".format, DOTTED, VALUES), max_size=4),
)
def test_no_document_and_no_override_gives_a_traceback(
    data: dict[Any, Any], overrides: list[str]
) -> None:
    try:
        plan = parse(apply_overrides(data, overrides)[0])
    except ConfigError as error:
        assert error.problems and all(text for _, text in error.problems)
        return
    assert isinstance(plan, Plan)
    for experiment in plan.experiments:
        assert again(experiment).resolved() == experiment.resolved()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(TABLES["methods"])),
    st.dictionaries(KEYS, DATA, max_size=3),
    st.sampled_from([0, 1, 2]),
)
def test_no_content_of_a_section_gives_a_traceback(
    name: str, values: dict[Any, Any], where: int
) -> None:
    section = ("method", "evaluate", "run")[where]
    data = {"task": {"source": "sinusoid"}, "method": {"name": name}}
    data[section] = {**data.get(section, {}), **values}
    try:
        found = one(data)
    except ConfigError:
        return
    assert again(found).resolved() == found.resolved()
