"""Task sources of the user are checked when they are passed, before anything is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from own_sources import (
    METHODS,
    QUICK,
    SPLITS,
    Groups,
    Lines,
    NoExamples,
    Points,
    by_split,
    changed,
    defined,
    with_batches,
    with_info,
    with_spec,
)

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.types import Batch, Episode, EpisodeSpec


def generator(self: Any, key: Any, num_tasks: int, start: int = 0) -> Any:
    """Tasks of torch's generator."""
    episode = Lines.sample(self, key, num_tasks, start)
    return with_batches(lambda b: b._replace(x=torch.rand(b.x.shape)))(episode)


def at_most(count: int) -> Any:
    return lambda self, key, n, start=0: Lines.sample(self, key, min(n, count), start)


def repeated(self: Any, key: Any, num_tasks: int, start: int = 0) -> Any:
    """The same task at all numbers."""
    keys = self.keys(key, num_tasks, start)
    return self.tasks(keys, fold_in(key, "task").expand(num_tasks))


def same_keys(self: Any, key: Any, num_tasks: int, start: int = 0) -> Any:
    return with_info(key=key.expand(num_tasks))(Lines.sample(self, key, num_tasks, start))


def broken(self: Any, key: Any, num_tasks: int, start: int = 0) -> Any:
    return {}["weather"]


def y_of(change: Any, kind: Any = Lines) -> dict[str, Any]:
    return changed(with_batches(lambda b: b._replace(y=change(b.y))), kind)


def examples_of(change: Any, kind: Any = Lines) -> dict[str, Any]:
    return defined(kind, examples=lambda self, key, size: change(kind.examples(self, key, size)))


one_hot = torch.nn.functional.one_hot
ALONE = r"task t must depend on \(key, start \+ t\) alone"
WRONG: dict[str, tuple[Any, str]] = {
    "no examples": (
        by_split(NoExamples),
        r"sources\.train, valid, test: NoExamples has no examples: .* examples\(key, size\) -> B",
    ),
    "no split": (
        {split: Lines() for split in SPLITS},
        r"sources\.test: spec\.split is 'train', but .* split 'test': pass split='test'",
    ),
    "function without split": (lambda split: Lines(), r"sources\.valid: spec\.split is 'train'"),
    "no start": (
        defined(sample=lambda self, key, num_tasks: None),
        r"takes \(key, num_tasks\): it must be sample\(key, num_tasks, start=0\) -> Episode",
    ),
    "no size": (defined(examples=lambda self, key: None), r"Own\.examples takes \(key\): it must"),
    "sample is a value": (
        defined(sample=3),
        r"Own\.sample is of type int: it must be a method, sample",
    ),
    "spec is a dict": (with_spec(asdict), r"spec is a dict: it must be .* type EpisodeSpec"),
    "spec is a method": (with_spec(lambda spec: lambda: spec), "spec is a method: it must be an"),
    "classes": (dict.fromkeys(SPLITS, Lines), r"Lines is a class: pass an object of it, such as"),
    "class": (Lines, r"Lines is a class"),
    "component": (
        dict.fromkeys(SPLITS, ml.tasks.Sinusoid()),
        r"Sinusoid is a component: .* Sinusoid\(\.\.\.\)\.build\(split='train'\)",
    ),
    "None": (lambda split: None, "None is not a task source: it has no spec, no sample, no exam"),
    "function of nothing": (lambda: Lines(), r"\('train'\) raises TypeError: .* positional"),
    "function raises": (lambda split: {"train": Lines()}[split], "raises KeyError: 'valid'; a fun"),
    "val": ({"train": Lines(), "val": Lines("valid"), "test": Lines("test")}, "did you mean 'val"),
    "kind": (by_split(kind="regresion"), "spec.kind is 'regresion': it must be 'classification' o"),
    "x_shape": (by_split(x_shape=1), r"spec\.x_shape is 1: it must be the shape of one x, a tuple"),
    "x_shape list": (by_split(x_shape=[1]), r"spec\.x_shape is \[1\]"),
    "dtype": (by_split(dtype="float32"), r"spec\.dtype is 'float32': it must be torch\.float32"),
    "shots": (by_split(shots=0), r"spec\.shots is 0: it must be an int >= 1"),
    "ways": (by_split(ways=5, shots=1), r"spec\.ways is 5: it must be 1 in regression"),
    "outputs": (
        by_split(Points, outputs=10),
        r"spec\.outputs is 10 for tasks of 3 ways: it must be 3",
    ),
    "one output": (by_split(Points, outputs=1), r"spec\.outputs is 1: it must be 3 for tasks of 3"),
    "num_classes": (by_split(Points, num_classes=0), r"spec\.num_classes is 0: .* at least 3"),
    "other shots": (by_split(shots=3), r"support\.x has 5 examples a task: .* ways \* shots = 1"),
    "other queries": (by_split(Points, queries=1), r"query\.x has 12 examples .* queries = 3 \* 1"),
    "other outputs": (
        by_split(outputs=2),
        r"support\.y has shape \[2, 5, 1\], but spec\.outputs is",
    ),
    "y is nan": (
        y_of(lambda y: y / 0),
        r"task\.sources\.train, valid, test: support\.y is not fin",
    ),
    "other device": (by_split(device="cuda"), "support is on cpu, and spec.device is 'cuda'"),
    "pair": (changed(lambda e: e[:2]), r"sample returns a tuple: it must return Episode\(support"),
    "nothing": (changed(lambda e: None), "sample returns a NoneType"),
    "tuples": (changed(with_batches(lambda b: (b.x, b.y))), r"support is a tuple: .*Batch\(x, y\)"),
    "one task": (
        changed(with_batches(lambda b: Batch(b.x[0], b.y[0]))),
        r"query\.x has shape \[6, 1\] for T = 2 tasks: the spec says \[T, B, 1\]",
    ),
    "few tasks": (defined(sample=at_most(13)), r"sample\(key, 50\) returns 13 tasks: it must"),
    "no axis of x": (
        changed(with_batches(lambda b: b._replace(x=b.x[..., 0])), x_shape=()),
        r"support\.x has no axis of inputs: use x\[\.\.\., None\]",
    ),
    "no axis of y": (y_of(lambda y: y[..., 0]), r"\[T, B, 1\].*: add a last axis, y\[\.\.\., None"),
    "float64 y": (y_of(torch.Tensor.double), r"support\.y is torch\.float64, and spec\.dtype"),
    "float labels": (y_of(torch.Tensor.float, Points), r"labels are integers \(int64\) 0 \.\. 2"),
    "one-hot labels": (y_of(one_hot, Points), r"support\.y has shape \[2, 6, 3\]: .* not one-hot"),
    "labels of the split": (
        y_of(lambda y: y + 5, Points),
        r"labels of the support set are .*: a task of 3 ways has 0 \.\. 2",
    ),
    "no info": (changed(lambda e: e._replace(info=None)), "info is a NoneType: it must be a dict"),
    "float key": (changed(with_info(key=torch.zeros(2))), r"info\['key'\] is torch\.float32 \[2\]"),
    "0-d info": (changed(with_info(noise=torch.tensor(1))), r"info\['noise'\] has shape \[\]"),
    "text in info": (changed(with_info(place="sea")), r"info\['place'\] is a str: it must be a te"),
    "same keys": (defined(sample=same_keys), rf"info\['key'\] is the same for all .*: {ALONE}"),
    "raises": (defined(sample=broken), r"sample\(key, 2, 0\) raises KeyError: 'weather'"),
    "generator": (defined(sample=generator), "sample gives other tasks when it is called again"),
    "ignores key": (
        defined(sample=lambda self, key, n, start=0: Lines.sample(self, fold_in(7), n, start)),
        rf"sources\.train: sample gives the same tasks for 8 different keys.*: {ALONE}",
    ),
    "ignores start": (
        defined(sample=lambda self, key, n, start=0: Lines.sample(self, key, n, 0)),
        rf"start=1\) is not the second task of sample\(key, 2\): {ALONE}",
    ),
    "ignores number": (defined(sample=repeated), rf"all tasks of .* are the same: {ALONE}"),
    "depends on the count": (
        defined(sample=lambda self, key, n, start=0: Lines.sample(self, fold_in(key, n), n, start)),
        rf"the first 2 tasks of sample\(key, 50\) are not those of .*: {ALONE}",
    ),
    "examples of tasks": (
        defined(examples=lambda self, key, size: self.sample(key, size).support),
        r"examples\(key, 4\)\.x has shape \[4, 5, 1\]: it must be \[4, 1\]",
    ),
    "examples as a pair": (examples_of(tuple), "examples returns a tuple: it must return a Batch"),
    "few examples": (
        examples_of(lambda b: Batch(b.x[:1], b.y[:1])),
        r"examples\(key, 4\) returns 1 examples: it must return 4, drawn with replacement",
    ),
    "labels of examples": (
        examples_of(lambda b: Batch(b.x, b.y + 20), Points),
        r"labels of the examples are 2.*: a split of 10 classes has 0 \.\. 9",
    ),
    "random examples": (
        examples_of(lambda b: Batch(torch.rand(b.x.shape), b.y)),
        "examples gives other examples when called again with the same key",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sources_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    sources, words = WRONG[name]
    with pytest.raises(ConfigError, match=words):
        ml.compare(METHODS, task=sources, out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_all_problems_of_all_splits_are_reported_at_once() -> None:
    wrong = {"train": NoExamples("train"), "valid": Lines("valid", shots=3), "val": Lines()}
    with pytest.raises(ConfigError) as caught:
        ml.tasks.Given(wrong)
    places = [place for place, _ in caught.value.problems]
    assert places == ["sources", "sources", "sources.train", "sources.valid"]
    with pytest.raises(ConfigError) as caught:
        ml.tasks.Given(by_split(x_shape=1, dtype="float", queries=-1))
    assert len(caught.value.problems) == 3


def test_the_error_of_a_source_is_the_cause() -> None:
    with pytest.raises(ConfigError) as caught:
        ml.tasks.Given(defined(sample=broken))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("kind", [Lines, Groups, Points])
def test_right_sources_run(kind: Any, tmp_path: Path) -> None:
    found = ml.compare(METHODS, task=by_split(kind), out=tmp_path / "out", **QUICK)
    assert {row["task"]["split"] for row in found.data["rows"]} == {"test"}


def test_one_source_for_all_splits_keeps_its_label(tmp_path: Path) -> None:
    found = ml.compare(METHODS, task=Lines(), out=tmp_path / "out", **QUICK)
    assert {row["task"]["split"] for row in found.data["rows"]} == {"train"}


def dense(self: Any, key: Any, num_tasks: int, start: int = 0) -> Episode:
    """Every example has a label for each of 2 places."""
    episode = Lines.sample(self, key, num_tasks, start)
    return with_batches(lambda b: Batch(b.x, (b.y > 0).long().expand(*b.y.shape[:2], 2)))(episode)


def test_sources_of_other_forms_are_accepted() -> None:
    ml.tasks.Given(by_split(type("One", (Groups,), {"groups": 1})) | {"train": Lines()})
    ml.tasks.Given(changed(with_info(step=None)))
    for task in (
        ml.tasks.Sinusoid(shots=[1, 3], queries=2),
        ml.tasks.Landscapes(),
        ml.tasks.Quadratics(),
        ml.tasks.Tables(ways=[2, 3], shots=[1, 4], queries=2),
        ml.tasks.Digits(ways=3, shots=2, queries=2),
    ):
        ml.tasks.Given(lambda split, task=task: task.build(split))
    spec = EpisodeSpec("classification", 1, 5, 6, (1,), 2, 2)
    labels = {
        "examples": lambda self, key, size: Batch(torch.zeros(size, 1), torch.zeros(size, 2).long())
    }
    source = type("Dense", (Lines,), {"sample": dense, **labels})(**asdict(spec))
    ml.tasks.Given(source)


def test_the_hash_of_sources_is_that_of_earlier_versions() -> None:
    """Run directories hold it."""
    one = ml.tasks.Sinusoid(shots=4, queries=4)
    assert ml.tasks.Given(one.build()).sha256.startswith("70cca21c0dbc0db2e95579")
    assert ml.tasks.Given(lambda split: one.build(split)).sha256.startswith("30ede4390499bc24")


def test_sources_on_another_device_or_of_another_dtype_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ml.tasks.Given(Lines()).build(device="cuda", dtype=torch.float64)
    text = str(caught.value)
    assert "has dtype float32, but the run needs float64" in text
    assert "is on cpu, but the run uses cuda: pass device='cpu'" in text
    with pytest.raises(ConfigError, match="unknown split 'tests'; valid: train, valid, test"):
        ml.tasks.Given(Lines()).build("tests")
