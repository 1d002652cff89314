"""The contract of a task source, for any component or source."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.component import TaskComponent
from metalearn.rng import fold_in
from metalearn.tasks.given.form import form_problems
from metalearn.testing.case import fields_set
from metalearn.testing.form import check_form, refuses
from metalearn.testing.run_checks import run_checks
from metalearn.testing.sentences import expect_close, expect_same
from metalearn.tree import named_leaves, take
from metalearn.types import Batch, Episode, EpisodeSpec, TaskSource

KEY = fold_in(31, "tasks")
COUNT = 7
KEYS = 8  # compared before tasks count as the same for all of them
SPLITS = ("train", "valid", "test")


class SourceCase(NamedTuple):
    """A task component with its options, or built sources by split."""

    component: type[TaskComponent] | None
    options: Mapping[str, Any]
    sources: Mapping[str, TaskSource]

    @property
    def splits(self) -> Sequence[str]:
        return SPLITS if self.component else tuple(self.sources)

    @property
    def first(self) -> Any:
        return self.build(self.splits[0])

    def build(
        self, split: str = "train", *, more: Mapping[str, Any] | None = None, **where: Any
    ) -> Any:
        """Build the source of a split with `more` options; `where` is its dtype and device."""
        if self.component is None:
            return self.sources[split]
        return self.component(**{**self.options, **(more or {})}).build(split, 0, **where)


Check = Callable[[SourceCase], None]


def _of_component(check: Check) -> Check:
    """Mark a check that builds the source again, with other options or another type."""
    check.of_component = True  # type: ignore[attr-defined]
    return check


def _sample(source: TaskSource, count: int = COUNT, start: int = 0, key: Tensor = KEY) -> Episode:
    """Sample tasks, which must have the types of an Episode and a leading axis of tasks."""
    call, episode = f"sample(key, {count}, {start})", source.sample(key, count, start)
    kinds: dict[str, tuple[Any, type]] = {"": (episode, Episode)}
    if isinstance(episode, Episode):
        kinds = {
            "support of ": (episode.support, Batch),
            "query of ": (episode.query, Batch),
            "info of ": (episode.info, dict),
        }
    for name, (value, kind) in kinds.items():
        assert isinstance(value, kind), (
            f"{name}{call} must be of type {kind.__name__}, and is of type {type(value).__name__}"
        )
    for name, leaf in named_leaves(episode).items():
        is_tensor = isinstance(leaf, Tensor)
        found = f"shape {tuple(leaf.shape)}" if is_tensor else f"type {type(leaf).__name__}"
        assert is_tensor and leaf.shape[:1] == (count,), (
            f"{name} of {call} must be a tensor with a leading axis of {count} tasks, and has "
            f"{found}"
        )
    return episode


def check_an_episode_depends_on_its_key_and_number_alone(case: SourceCase) -> None:
    """Equal when repeated, alone, in chunks, from another object, in any torch generator state.

    Some of several keys, and some of several numbers, give different tasks."""
    source = case.first
    whole = _sample(source)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    text = f"sample(key, {COUNT}) must return the same tasks when it is called again, and"
    expect_same(_sample(case.first), whole, text)
    for first, last in ((0, 1), (3, 4), (2, 7)):
        part = _sample(source, last - first, first)
        call = f"sample(key, {last - first}, start={first})"
        tasks = f"tasks {first} to {last - 1}" if last - first > 1 else f"task {first}"
        text = f"{call} must return {tasks} of sample(key, {COUNT}), and"
        expect_same(part, take(whole, slice(first, last)), text)
    large_numbers = _sample(source, 3, 1_000_002)
    text = "sample(key, 2, start=1_000_003) must return the last 2 tasks of sample(key, 3, "
    part = _sample(source, 2, 1_000_003)
    expect_same(part, take(large_numbers, slice(1, 3)), f"{text}start=1_000_002), and")
    assert torch.equal(torch.get_rng_state(), before), (
        "sample must draw from the key (metalearn.rng), and uses torch's global random number "
        "generator"
    )
    _check_tasks_vary(source, whole)


def _check_tasks_vary(source: TaskSource, whole: Episode) -> None:
    """A source of few tasks repeats some by chance, so that several keys are compared."""
    batches = [whole, *(_sample(source, key=fold_in(KEY, "other", n)) for n in range(1, KEYS))]
    contents = [_contents(batch) for batch in batches]
    assert any(content != contents[0] for content in contents), (
        f"sample must draw its tasks from the key: sample(key, {COUNT}) returned the same tasks "
        f"for {KEYS} different keys (repeated tasks are fine, equal batches of all keys are not)"
    )
    assert any(len(set(content)) > 1 for content in contents), (
        f"task t must depend on start + t: for each of {KEYS} keys, the {COUNT} tasks of "
        f"sample(key, {COUNT}) are all the same (some of them may be)"
    )


def _contents(batch: Episode) -> list[str]:
    """Return the support and query set of each task, as text."""
    parts = (batch.support.x, batch.support.y, batch.query.x, batch.query.y)
    return [str([part[t].tolist() for part in parts]) for t in range(COUNT)]


def check_shapes_are_those_of_the_spec(case: SourceCase) -> None:
    """x [T, M, *X], y [T, M] int64 or [T, M, C] floats, keys and steps [T]; every split."""
    for split in case.splits:
        source = case.build(split)
        spec, episode = source.spec, _sample(source)
        expected = {"split": split} | {
            name: case.options[name] for name in ("shots", "queries") if name in case.options
        }
        for name, value in expected.items():
            text = f"spec.{name} of the source of the split {split!r} must be {value!r}, and is"
            assert getattr(spec, name) == value, f"{text} {getattr(spec, name)!r}"
        for part, count in (("support", spec.shots), ("query", spec.queries)):
            size = (COUNT, spec.ways * count)
            _check_batch(f"{part}.{{}} of sample", getattr(episode, part), size, spec)
        _check_leaves(episode, spec)
        _check_info(episode, spec)


def _check_leaves(episode: Episode, spec: EpisodeSpec) -> None:
    for name, leaf in named_leaves(episode).items():
        assert leaf.isfinite().all(), f"{name} must be finite, and has values that are not"
        assert not leaf.requires_grad, f"{name} must not require a gradient: use .detach()"
        device = torch.device(spec.device).type
        assert leaf.device.type == device, (
            f"{name} must be on {device}, the device of the spec, and is on {leaf.device.type}"
        )


def _check_info(episode: Episode, spec: EpisodeSpec) -> None:
    for name, dtype in (("key", torch.int64), ("step", spec.dtype)):
        value = _info(episode, name)
        assert value.shape == (COUNT,) and value.dtype == dtype, (
            f"info[{name!r}] must be {dtype} of shape {(COUNT,)}, one per task, and is "
            f"{value.dtype} of shape {tuple(value.shape)}"
        )
    different = episode.info["key"].unique().numel()
    assert different == COUNT, (
        f"info['key'] must be different for the {COUNT} tasks of sample(key, {COUNT}), and has "
        f"{different} different values: fold_in(key, torch.arange(start, start + num_tasks))"
    )


def _info(episode: Episode, name: str) -> Tensor:
    """Return a value of info, which must be there."""
    names = ", ".join(episode.info) or "nothing"
    assert name in episode.info, f"info must have {name!r}, and has {names}"
    return episode.info[name]


def _check_batch(name: str, batch: Batch, size: tuple[int, ...], spec: EpisodeSpec) -> None:
    """Check shapes and types; `name` is that of a leaf, with {} for x or y."""
    y_shape = size if spec.classification else (*size, spec.outputs)
    y_dtype = torch.int64 if spec.classification else spec.dtype
    for leaf, value, shape, dtype in (
        ("x", batch.x, (*size, *spec.x_shape), spec.dtype),
        ("y", batch.y, y_shape, y_dtype),
    ):
        assert tuple(value.shape) == shape and value.dtype == dtype, (
            f"{name.format(leaf)} must be {dtype} of shape {shape}, and is {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )


def check_labels_are_a_permutation_and_no_example_is_in_both_sets(case: SourceCase) -> None:
    """Labels are assigned again in every task; a query example is not in the support set."""
    for split in case.splits:
        source = case.build(split)
        spec, episode = source.spec, _sample(source)
        for t in range(COUNT):
            examples = torch.cat([episode.support.x[t], episode.query.x[t]]).flatten(1)
            different = len({str(x.tolist()) for x in examples})
            assert different == len(examples), (
                f"the {len(examples)} examples of a task must be different, and {different} are: "
                f"an example occurs twice in its support and query set"
            )
        if spec.classification:
            _check_labels(episode, spec)
            _check_labels_vary(source)


def _check_labels(episode: Episode, spec: EpisodeSpec) -> None:
    assert spec.ways == spec.outputs, (
        f"spec.outputs must be spec.ways, {spec.ways}, and is {spec.outputs}"
    )
    for ids in _info(episode, "class_ids").tolist():
        is_valid = all(0 <= i < spec.num_classes for i in ids)
        assert len(set(ids)) == len(ids) == spec.ways and is_valid, (
            f"info['class_ids'] of a task must be {spec.ways} different classes of "
            f"0 .. {spec.num_classes - 1}, and is {ids}"
        )
    for name, batch, count in (
        ("support", episode.support, spec.shots),
        ("query", episode.query, spec.queries),
    ):
        for labels in batch.y.tolist():
            assert sorted(labels) == sorted(list(range(spec.ways)) * count), (
                f"y of a task's {name} set must have each label 0 .. {spec.ways - 1} {count} "
                f"times, and is {labels}"
            )


def _check_labels_vary(source: TaskSource) -> None:
    """The order of labels and the classes vary between tasks; several keys are compared."""
    batches = [_sample(source, key=fold_in(KEY, "labels", n)) for n in range(KEYS)]
    values = {
        "support.y": [batch.support.y for batch in batches],
        "query.y": [batch.query.y for batch in batches if source.spec.queries],
        "info['class_ids']": [batch.info["class_ids"] for batch in batches],
    }
    for name, tensors in values.items():
        rows = torch.cat(tensors) if tensors else torch.arange(2)[:, None]
        assert len(rows.unique(dim=0)) > 1, (
            f"{name} must vary between tasks, and is {rows[0].tolist()} in all {len(rows)} tasks "
            f"of {KEYS} keys: shuffle labels and their order in every task"
        )


@_of_component
def check_a_source_without_queries(case: SourceCase) -> None:
    """`queries: 0` is valid in training."""
    source = case.build(more={"queries": 0})
    spec, episode = source.spec, _sample(source)
    assert spec.queries == 0, f"spec.queries must be 0 with queries=0, and is {spec.queries}"
    expected = {
        "query.x": (episode.query.x.shape, (COUNT, 0, *spec.x_shape)),
        "query.y": (episode.query.y.shape[:2], (COUNT, 0)),
        "support.x": (episode.support.x.shape[1], spec.ways * spec.shots),
    }
    for name, (found, wanted) in expected.items():
        assert found == wanted, f"{name} must have shape {wanted} with queries=0, and has {found}"
    assert episode.support.x.isfinite().all(), "support.x must be finite with queries=0, and is not"


@_of_component
def check_float64_draws_the_same_episodes(case: SourceCase) -> None:
    """The same spec, and the same numbers up to rounding."""
    double, single = case.build(dtype=torch.float64), case.build()
    assert single.spec.dtype == torch.float32 and single.spec.device == "cpu", (
        f"the spec of build() must have dtype torch.float32 and device 'cpu', and has "
        f"{single.spec.dtype} and {single.spec.device!r}"
    )
    expected = dataclasses.replace(single.spec, dtype=torch.float64)
    assert double.spec == expected, (
        f"the spec of build(dtype=torch.float64) must be {expected}, and is {double.spec}"
    )
    found, wanted = (named_leaves(_sample(source, 3)) for source in (double, single))
    for name, b in wanted.items():
        a, dtype = found[name], torch.float64 if b.is_floating_point() else b.dtype
        assert a.dtype == dtype, f"{name} of float64 tasks must be {dtype}, and is {a.dtype}"
        text = f"{name} must be the same in float64 and in float32 up to rounding, and"
        expect_close(a, b.to(dtype), text, rtol=1e-5, atol=1e-5)
    dtype = double.examples(KEY, 4).x.dtype
    assert dtype == torch.float64, f"x of float64 examples must be torch.float64, and is {dtype}"


def check_examples_are_labelled_over_all_classes(case: SourceCase) -> None:
    """Labelled examples for pretraining: x [B, *X], y [B] over the classes of the split."""
    source = case.first
    spec, batch = source.spec, source.examples(KEY, 500)
    kind = type(batch).__name__
    assert isinstance(batch, Batch), f"examples must return a Batch, and returns a {kind}"
    _check_batch("{} of examples(key, 500)", batch, (500,), spec)
    assert batch.x.isfinite().all(), "x of examples must be finite, and has values that are not"
    text = "examples(key, 500) must return the same batch when it is called again, and"
    expect_same(source.examples(KEY, 500), batch, text)
    others = (source.examples(fold_in(KEY, "other", n), 500) for n in range(1, KEYS))
    assert any(not torch.equal(batch.x, other.x) for other in others), (
        f"examples must be drawn from the key: x is the same for {KEYS} different keys"
    )
    if spec.classification:
        low, high, different = batch.y.min(), batch.y.max(), batch.y.unique().numel()
        assert low >= 0 and high < spec.num_classes, (
            f"y of examples must be classes of the split, 0 .. {spec.num_classes - 1}, and is "
            f"{low} .. {high}"
        )
        least = min(spec.num_classes, 500) * 0.3
        assert different > least, (
            f"500 examples must be of more than {least:g} of the {spec.num_classes} classes of the "
            f"split, and are of {different}"
        )


def check_splits_give_different_tasks(case: SourceCase) -> None:
    """No example of one split occurs in another one."""
    examples = {
        split: {str(x.tolist()) for x in _sample(case.build(split), 3).support.x.flatten(0, 1)}
        for split in case.splits
    }
    for a, b in itertools.combinations(examples, 2):
        common = len(examples[a] & examples[b])
        assert not common, (
            f"an example must be in one split only, and {common} examples of the support sets of "
            f"3 tasks are in {a} and in {b}"
        )


@_of_component
def check_component_keeps_its_form(case: SourceCase) -> None:
    """Frozen, equal after JSON; unknown fields and numbers out of range are rejected."""
    assert case.component is not None
    kind = case.component
    required = {name for name, info in kind.model_fields.items() if info.is_required()}
    check_form(kind, {k: v for k, v in case.options.items() if k in required}, "source")
    check_form(kind, case.options, "source")
    for wrong in ({"shots": 0}, {"queries": -1}, {"ways": 0}):
        (name,) = wrong
        refuses(lambda wrong=wrong: kind(**{**case.options, **wrong}), name)  # type: ignore[misc]


SOURCE_CHECKS: list[Check] = [
    value for name, value in list(globals().items()) if name.startswith("check_")
]
SOURCE_CHECKS.remove(check_form)  # type: ignore[arg-type]


def inapplicable(case: SourceCase, check: Check) -> str:
    """Return why a check does not apply to a source; empty if it applies."""
    if case.component is None and getattr(check, "of_component", False):
        return "a built source cannot be rebuilt with other options"
    return ""


def check_source(given: Any, *, skip: Mapping[str, str] | None = None) -> None:
    """Run the contract suite of task sources.

    given: a TaskComponent, as a class (built from its defaults) or an instance; a task source, or a
        mapping of task sources by split.
    skip: {name of a check: why it does not apply}.

    Raises AssertionError with every check that fails; TypeError if it is not a task source.

    >>> from metalearn.testing import check_source
    >>> check_source(ml.tasks.Sinusoid(shots=3, queries=3))  # raises if the contract is broken
    """
    run_checks(_target_name(given), lambda: _build_case(given), SOURCE_CHECKS, inapplicable, skip)


def _target_name(target: Any) -> str:
    if isinstance(target, Mapping) and target:
        target = next(iter(target.values()))
    return str(getattr(target if isinstance(target, type) else type(target), "__name__", target))


def _build_case(target: Any) -> SourceCase:
    if isinstance(target, TaskComponent):
        return SourceCase(type(target), fields_set(target), {})
    if isinstance(target, type) and issubclass(target, TaskComponent):
        return SourceCase(target, {}, {})
    sources = target if isinstance(target, Mapping) else {_get_split(target): target}
    problems = dict.fromkeys(text for source in sources.values() for text in form_problems(source))
    if problems:
        raise TypeError("\n".join(problems))
    return SourceCase(None, {}, sources)


def _get_split(source: Any) -> str:
    return str(getattr(getattr(source, "spec", None), "split", "train"))
