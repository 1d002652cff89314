"""From experiment file and overrides to a resolved experiment: every key of the contract, and every
error at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import sinusoid
from hypothesis import given, settings
from hypothesis import strategies as st

import metalearn as ml
from metalearn.config import shipped
from metalearn.config.experiment import Experiment, load, parse
from metalearn.config.overrides import apply_overrides
from metalearn.config.registry import METHODS
from metalearn.errors import ConfigError
from metalearn.storage.yaml import parse_yaml

EXAMPLE = """
experiment: maml_omniglot_5w1s
task:      {source: omniglot, ways: 5, shots: 1, queries: 1, split_scheme: random,
            split_seed: 0, rotations: per_task}
model:     {name: conv4, filters: 64, downsample: stride, norm: query_batch}
method:    {name: maml, inner_lr: 0.4, inner_steps: 1}
run:       {meta_steps: 60000, tasks_per_step: 32, seeds: [0], device: auto,
            engine: native, executor: auto, checkpoint_every: 500,
            validate: {every: 1000, episodes: 200, keep: 1, patience: null}}
evaluate:  {task: {queries: 1}, split: test, episodes: 600, seed: 1, steps: [0, 1, 3, 5, 10],
            headline_step: 3, checkpoint: best, target: {metric: accuracy, value: 0.9}}
budget:    {trials: 0}
published: {value: 0.987, ci95: 0.004, source: "Finn et al. 2017, table 1"}
"""
COMPARISON: dict[str, Any] = {
    "task": {"source": "glyphs", "ways": 5, "shots": 1, "queries": 5},
    "model": {"name": "conv4", "filters": 8},
    "methods": [
        {"name": "maml", "inner_lr": 0.4},
        {"name": "maml", "label": "first", "first_order": True, "run": {"meta_steps": 7}},
        {"name": "reptile", "task": {"shots": 10, "queries": 0}, "model": {"norm": "running"}},
    ],
}


def problems_of(data: dict[str, Any], *overrides: str) -> list[tuple[str, str]]:
    """The problems of a mapping with overrides; fails when there are none."""
    with pytest.raises(ConfigError) as caught:
        parse(apply_overrides(data, overrides)[0])
    return list(caught.value.problems)


def places(data: dict[str, Any], *overrides: str) -> list[str]:
    return [place for place, _ in problems_of(data, *overrides)]


def one(data: dict[str, Any], *overrides: str) -> Experiment:
    return parse(apply_overrides(data, overrides)[0]).experiments[0]


def again(experiment: Experiment) -> Experiment:
    """The experiment after a journey through its config.yaml."""
    return parse(
        yaml.safe_load(yaml.safe_dump(experiment.resolved(), sort_keys=False))
    ).experiments[0]


def test_every_section_and_key_of_the_contract_is_taken() -> None:
    found = one(yaml.safe_load(EXAMPLE))
    resolved = found.resolved()
    for section, values in yaml.safe_load(EXAMPLE).items():
        if not isinstance(values, dict):
            assert resolved[section] == values
            continue
        for key, value in values.items():
            if isinstance(value, dict):
                assert value.items() <= resolved[section][key].items(), (section, key)
            else:
                assert resolved[section][key] == value, (section, key)
    assert found.evaluate.headline == 3 and found.evaluate.target is not None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_alone_and_every_default_resolves_to_itself(name: str) -> None:
    found = one({"method": {"name": name}})
    assert again(found).resolved() == found.resolved() and again(found).hash() == found.hash()


def test_the_first_sentence_of_a_file_does_not_end_at_et_al(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# The baseline of Finn et al. 2017\n# beside MAML. More.\ntask: {}\n", "utf-8")
    assert shipped.sentence(file) == "The baseline of Finn et al. 2017 beside MAML."
    file.write_text("# One sentence\n", "utf-8")
    assert shipped.sentence(file) == "One sentence"


def test_the_shipped_experiments_resolve_to_themselves() -> None:
    files = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
    assert files
    for file in files:
        for experiment in load(str(file)).experiments:
            assert again(experiment).resolved() == experiment.resolved()


LEGAL = {
    "method.inner_lr": st.floats(1e-6, 10).map(repr),
    "method.inner_steps": st.integers(1, 9).map(str),
    "method.outer.lr": st.sampled_from(["1e-3", "0.5"]),
    "method.outer.name": st.sampled_from(["adam", "sgd", "momentum"]),
    "method.name": st.sampled_from(["maml", "fine_tune", "reptile", "scratch"]),
    "method.label": st.text("ab1.-", min_size=1, max_size=4)
    .filter(lambda text: set(text) != {"."})
    .map(repr),
    "method.start": st.sampled_from(["runs/x", "null"]),
    "task.source": st.sampled_from(["sinusoid", "omniglot", "glyphs"]),
    "task.shots": st.integers(1, 9).map(str),
    "evaluate.task.shots": st.integers(1, 9).map(str),
    "evaluate.task.source": st.sampled_from(["sinusoid", "glyphs"]),
    "evaluate.steps": st.sampled_from(["[0]", "[0, 5]", "[1, 2, 3]"]),
    "evaluate.target": st.sampled_from(["null", "{value: 0.5}", "{metric: loss}"]),
    "run.seeds": st.sampled_from(["[0]", "[3, 1]"]),
    "run.validate.every": st.sampled_from(["null", "7"]),
    "budget.trials": st.integers(0, 5).map(str),
    "published": st.sampled_from(
        ["null", "{}", "{value: null}", "{value: 0.5}", "{curve: {1: 0.5}, source: x}"]
    ),
    "experiment": st.sampled_from(["a", "b c", "'1'"]),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=LEGAL))
def test_what_parses_resolves_to_itself(overrides: dict[str, str]) -> None:
    texts = [f"{key}={value}" for key, value in overrides.items()]
    try:
        found = one({"task": {"source": "sinusoid"}}, *texts)
    except ConfigError:
        return
    assert again(found).resolved() == found.resolved() and again(found).hash() == found.hash()


def test_all_errors_at_once_each_with_its_place_and_the_valid_names() -> None:
    wrong = sinusoid(
        task={"shotz": 3, "queries": -1},
        method={"inner_lr": 0, "outer": {"lr": "fast"}},
        run={"validate": {"every": 0}, "seeds": [1, 1]},
        evaluate={"steps": [3, 1], "split": "exam"},
        budget={"trials": 1.5},
    )
    problems = dict(problems_of(wrong))
    assert set(problems) >= {
        "task.shotz",
        "task.queries",
        "method.inner_lr",
        "method.outer.lr",
        "run.validate.every",
        "run.seeds",
        "evaluate.split",
        "budget.trials",
    }
    assert "did you mean 'shots'" in problems["task.shotz"] and "queries" in problems["task.shotz"]
    assert "greater than 0" in problems["method.inner_lr"]
    assert "got 0" in problems["method.inner_lr"]
    assert any("ascending" in text for _, text in problems_of(sinusoid(evaluate={"steps": [3, 1]})))


@pytest.mark.parametrize(
    ("override", "place", "hint"),
    [
        ("method.inner_lrr=1", "method.inner_lrr", "did you mean 'inner_lr'"),
        ("method.name=mamal", "method.name", "did you mean 'maml'"),
        ("task.source=omniglott", "task.source", "did you mean 'omniglot'"),
        ("model.name=conv5", "model.name", "did you mean 'conv4'"),
        ("method.outer.name=adm", "method.outer", "adam"),
        ("method.outer.lrr=1", "method.outer.lrr", "did you mean 'lr'"),
        ("run.validate.evry=1", "run.validate.evry", "did you mean 'every'"),
        ("runn.seeds=[1]", "runn", "did you mean 'run'"),
        ("method.inner_lr=.inf", "method.inner_lr", "finite"),
        ("method.inner_lr=.nan", "method.inner_lr", "finite"),
        ("method.inner_lr=1e999", "method.inner_lr", "finite"),
        ("task.noise=-.inf", "task.noise", "finite"),
        ("evaluate.target.value=.nan", "evaluate.target.value", "finite"),
        ("published.value=.inf", "published.value", "finite"),
        ("evaluate.headline_step=2", "evaluate", "one of steps"),
        ("run.device=gpu", "run.device", "cuda"),
        ("run.meta_steps=-5", "run.meta_steps", "greater than or equal to 0"),
        ("budget.seed=-1", "budget.seed", "greater than or equal to 0"),
        ("experiment=a/b", "experiment", "slashes"),
        ("experiment=..", "experiment", "name"),
        ("method.label=a/b", "method.label", "slashes"),
        ("method.label=..", "method.label", "slashes"),
        ("evaluate.steps=10", "evaluate.steps", "must be a list, such as [10]"),
        ("task=3", "task", "mapping"),
        ("evaluate.task=3", "evaluate.task", "mapping"),
    ],
)
def test_one_error_and_its_hint(override: str, place: str, hint: str) -> None:
    problems = problems_of(sinusoid(), override)
    assert any(where == place and hint in text for where, text in problems), problems
    assert len(problems) == 1, problems


@pytest.mark.parametrize(
    ("method", "place"),
    [({}, "method"), ({"method": {"inner_lr": 1}}, "method"), ({"methods": [{}]}, "methods.0")],
)
def test_a_file_names_its_method(tmp_path: Path, method: dict[str, Any], place: str) -> None:
    data = {**sinusoid(method=None), **method}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=rf"{place}: has no name: .* such as name: maml"):
        load(str(tmp_path / "own.yaml"))
    with pytest.raises(ConfigError, match="has no name"):
        ml.experiment(data) if place == "method" else ml.compare(data, out=tmp_path / "none")
    if place == "method":
        assert load(str(tmp_path / "own.yaml"), ["method.name=maml"]).experiments


def test_one_seed_needs_no_list() -> None:
    assert one(sinusoid(), "run.seeds=3").run.seeds == (3,)
    assert places(sinusoid(method={"start": 3})) == ["method.start"]


FOLDER = {"task": {"source": "image_folder", "path": "photos"}}


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("task.path=my photos #2", "task.path", "my photos #2"),
        ("task.path=#2", "task.path", "#2"),
        ("task.path=2024", "task.path", "2024"),
        ("task.path=a: b", "task.path", "a: b"),
        ("task.path=[draft", "task.path", "[draft"),
        ("task.path='quoted #2'", "task.path", "quoted #2"),
        ("task.split_file=null", "task.split_file", None),
        ("task.split_file=1.0", "task.split_file", "1.0"),
        ("evaluate.task.path=yes", "evaluate.task.path", "yes"),
        ("method.label=1e3", "method.label", "1e3"),
        ("method.start=runs/a #1", "method.start", "runs/a #1"),
        ("run.track.wandb.project=12:30", "run.track.wandb.project", "12:30"),
        ("published.source=Finn et al. 2017, table 1", "published.source", None),
        ("experiment=on", "experiment", "on"),
        ("method.inner_lr=0.1 # of the paper", "method.inner_lr", 0.1),
        ("run.track.wandb.tags=[a, b]", "run.track.wandb.tags", ["a", "b"]),
    ],
)
def test_the_value_of_a_text_field_is_taken_as_it_stands(
    override: str, place: str, value: Any
) -> None:
    data: Any = apply_overrides(FOLDER, [override])[0]
    for key in place.split("."):
        data = data[key]
    assert data == (override.partition("=")[2] if place == "published.source" else value)


def test_text_that_no_file_can_hold_is_refused() -> None:
    for value in ("a\0b", "\ud800", "\x07"):
        with pytest.raises(ConfigError, match="cannot be stored"):
            apply_overrides(FOLDER, [f"task.path={value}"])


def test_a_text_field_of_one_method_of_a_comparison() -> None:
    words = ["methods.reptile.start=runs/x #2", "methods.first.task.source=image_folder"]
    data, _ = apply_overrides(COMPARISON, [*words, "methods.first.task.path=a #2"])
    assert data["methods"][2]["start"] == "runs/x #2"
    assert data["methods"][1]["task"] == {"source": "image_folder", "path": "a #2"}
    shared = {"name": "shared_nas", "contains": {"name": "maml"}}
    data, _ = apply_overrides({"method": shared}, ["method.contains.inner_lr=0.1 #x"])
    assert data["method"]["contains"]["inner_lr"] == 0.1


def test_yaml_numbers_and_missing_tags() -> None:
    found = one(
        sinusoid(method={"outer": {"lr": "1e-3"}}),
        "method.inner_lr=1e-3",
        "evaluate.target={value: 9e-1}",
    )
    assert found.method.inner_lr == 0.001
    assert found.method.outer.name == "adam"
    assert found.method.outer.lr == 0.001
    assert found.evaluate.target is not None and found.evaluate.target.value == 0.9
    assert one({}).task.source == "glyphs"
    assert one({}).method.name == "maml"
    assert one({}).model.name == "conv4"
    assert one({"task": {"source": "sinusoid"}}).model.name == "mlp"


@pytest.mark.parametrize(("value", "number"), [("010", "8, in base 8"), ("1:30", "90, in base 60")])
def test_numbers_that_yaml_reads_in_another_base_are_refused(value: str, number: str) -> None:
    with pytest.raises(ConfigError, match=f"reads {value} as {number}: write .*, or quote it"):
        apply_overrides({}, [f"run.meta_steps={value}"])


def test_a_changed_name_drops_the_other_keys_of_the_file_and_says_so() -> None:
    data = sinusoid(method={"inner_steps": 3})
    changed, notes = apply_overrides(data, ["method.inner_lr=0.2", "method.name=scratch"])
    assert changed["method"] == {"name": "scratch", "inner_lr": 0.2}
    assert notes == ["method.name=scratch drops the file's inner_lr, inner_steps"]
    assert data["method"]["inner_steps"] == 3  # the file's own data are left alone
    changed, notes = apply_overrides(data, ["task.source=glyphs", "task.ways=3"])
    assert changed["task"] == {"source": "glyphs", "ways": 3} and "shots" in notes[0]
    changed, notes = apply_overrides(data, ["method.name=maml"])
    assert changed == data and not notes
    changed, notes = apply_overrides({"model": {"name": "conv4", "filters": 8}}, ["model.name=mlp"])
    assert changed["model"] == {"name": "mlp"} and "filters" in notes[0]


def test_a_changed_name_inside_a_section_drops_what_belonged_to_the_old_one() -> None:
    data = sinusoid(
        method={"outer": {"name": "adam", "lr": 0.1, "beta1": 0.5}}, evaluate={"task": {"shots": 3}}
    )
    changed, notes = apply_overrides(data, ["method.outer.lr=0.2", "method.outer.name=sgd"])
    assert changed["method"]["outer"] == {"name": "sgd", "lr": 0.2}
    assert changed["method"]["inner_lr"] == 0.01
    assert "method.outer.name=sgd drops the file's beta1, lr" in notes
    resolved = one(data).resolved()
    changed, notes = apply_overrides(resolved, ["evaluate.task.source=glyphs"])
    assert changed["evaluate"]["task"] == {"source": "glyphs"} and "amplitude" in notes[0]
    assert one(resolved, "evaluate.task.source=glyphs", "evaluate.task.ways=3").test_task.ways == 3


def test_overrides_that_are_no_overrides_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(
            {}, ["method.inner_lr", "=3", "a..b=1", "a=[1", "methods.x.y=1", "run.seeds=[1]"]
        )
    expected = ["method.inner_lr", "=3", "a..b=1", "a=[1", "methods.x.y=1"]
    assert [place for place, _ in caught.value.problems] == expected
    with pytest.raises(ConfigError, match="not a mapping"):
        apply_overrides({"run": {"seeds": [0]}}, ["run.seeds.first=1"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("task: {shots: 3, shots: 2}", "'shots' occurs twice (lines 1 and 1)"),
        ("run: {}\ntask: {}\nrun: {meta_steps: 7}", "'run' occurs twice (lines 1 and 3)"),
    ],
)
def test_a_key_stands_once(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(tmp_path / "twice.yaml"))
    assert why in str(error.value)
    merged = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, y: 4}"
    assert parse_yaml(merged)["b"] == {"x": 3, "y": 2}
