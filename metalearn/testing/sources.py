"""The contract of a task source, for any component or source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from metalearn.component import TaskComponent
from metalearn.rng import fold_in
from metalearn.testing.case import fields_set, same_leaves
from metalearn.testing.form import check_form, refuses
from metalearn.testing.run_checks import run_checks
from metalearn.tree import leaves, take
from metalearn.types import Batch, EpisodeSpec, TaskSource

KEY = fold_in(31, "tasks")
COUNT = 7
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


def check_an_episode_depends_on_its_key_and_number_alone(case: SourceCase) -> None:
    """Equal when repeated, alone, in chunks, from another object, in any torch generator state."""
    source = case.first
    whole = source.sample(KEY, COUNT)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert same_leaves(whole, case.first.sample(KEY, COUNT))
    for first, last in ((0, 1), (3, 4), (2, 7)):
        part = source.sample(KEY, last - first, start=first)
        assert same_leaves(part, take(whole, slice(first, last)))
    large_numbers = source.sample(KEY, 3, start=1_000_002)
    assert same_leaves(source.sample(KEY, 2, start=1_000_003), take(large_numbers, slice(1, 3)))
    assert torch.equal(torch.get_rng_state(), before), (
        "it uses torch's global random number generator"
    )
    other = source.sample(fold_in(KEY, "other"), COUNT)
    assert not torch.equal(other.support.x, whole.support.x)
    pairs = zip(whole.support.x, whole.query.x, strict=True)
    assert len({f"{x.tolist()} {q.tolist()}" for x, q in pairs}) == COUNT, "episodes repeat"


def check_shapes_are_those_of_the_spec(case: SourceCase) -> None:
    """x [T, M, *X], y [T, M] int64 or [T, M, C] floats, keys and steps [T]; every split."""
    for split in case.splits:
        source = case.build(split)
        spec, episode = source.spec, source.sample(KEY, COUNT)
        expected = {"split": split} | {
            name: case.options[name] for name in ("shots", "queries") if name in case.options
        }
        assert {name: getattr(spec, name) for name in expected} == expected
        for batch, count in ((episode.support, spec.shots), (episode.query, spec.queries)):
            _check_batch(batch, (COUNT, spec.ways * count), spec)
        assert all(leaf.isfinite().all() for leaf in leaves(episode)), "values are not finite"
        assert all(leaf.shape[0] == COUNT for leaf in leaves(episode)), "a leaf without tasks"
        assert {leaf.device.type for leaf in leaves(episode)} == {torch.device(spec.device).type}
        key, step = episode.info["key"], episode.info["step"]
        assert key.shape == (COUNT,) and key.dtype == torch.int64
        assert key.unique().numel() == COUNT, "two tasks have the same key"
        assert step.shape == (COUNT,) and step.dtype == spec.dtype


def _check_batch(batch: Batch, size: tuple[int, ...], spec: EpisodeSpec) -> None:
    assert batch.x.shape == (*size, *spec.x_shape) and batch.x.dtype == spec.dtype
    assert batch.y.shape == (size if spec.classification else (*size, spec.outputs))
    assert batch.y.dtype == (torch.int64 if spec.classification else spec.dtype)


def check_labels_are_a_permutation_and_no_example_is_in_both_sets(case: SourceCase) -> None:
    """Labels are assigned again in every task; a query example is not in the support set."""
    for split in case.splits:
        source = case.build(split)
        spec, episode = source.spec, source.sample(KEY, COUNT)
        for t in range(COUNT):
            examples = torch.cat([episode.support.x[t], episode.query.x[t]]).flatten(1)
            assert len({str(x.tolist()) for x in examples}) == len(examples), (
                "an example occurs twice"
            )
        if not spec.classification:
            continue
        for t in range(COUNT):
            ids = episode.info["class_ids"][t].tolist()
            assert len(set(ids)) == spec.ways == spec.outputs
            assert all(0 <= i < spec.num_classes for i in ids)
            for batch, count in ((episode.support, spec.shots), (episode.query, spec.queries)):
                assert sorted(batch.y[t].tolist()) == sorted(list(range(spec.ways)) * count)
        # the order of labels and the classes vary between tasks
        for values in (episode.support.y, episode.query.y, episode.info["class_ids"]):
            assert len({str(row.tolist()) for row in values}) > 1


@_of_component
def check_a_source_without_queries(case: SourceCase) -> None:
    """`queries: 0` is valid in training."""
    source = case.build(more={"queries": 0})
    episode = source.sample(KEY, COUNT)
    assert source.spec.queries == 0
    assert episode.query.x.shape == (COUNT, 0, *source.spec.x_shape)
    assert episode.query.y.shape[:2] == (COUNT, 0)
    assert episode.support.x.shape[1] == source.spec.ways * source.spec.shots
    assert episode.support.x.isfinite().all()


@_of_component
def check_float64_draws_the_same_episodes(case: SourceCase) -> None:
    """The same spec, and the same numbers up to rounding."""
    double, single = case.build(dtype=torch.float64), case.build()
    assert single.spec.dtype == torch.float32 and single.spec.device == "cpu"
    assert double.spec == dataclasses.replace(single.spec, dtype=torch.float64)
    for a, b in zip(leaves(double.sample(KEY, 3)), leaves(single.sample(KEY, 3)), strict=True):
        assert a.dtype == (torch.float64 if b.is_floating_point() else b.dtype)
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)
    assert double.examples(KEY, 4).x.dtype == torch.float64


def check_examples_are_labelled_over_all_classes(case: SourceCase) -> None:
    """Labelled examples for pretraining: x [B, *X], y [B] over the classes of the split."""
    source = case.first
    spec, batch = source.spec, source.examples(KEY, 500)
    _check_batch(batch, (500,), spec)
    assert batch.x.isfinite().all()
    repeated, other = source.examples(KEY, 500), source.examples(fold_in(KEY, "other"), 500)
    assert torch.equal(batch.x, repeated.x) and torch.equal(batch.y, repeated.y)
    assert not torch.equal(batch.x, other.x)
    if spec.classification:
        assert batch.y.min() >= 0 and batch.y.max() < spec.num_classes
        assert batch.y.unique().numel() > min(spec.num_classes, 500) * 0.3


def check_splits_give_different_tasks(case: SourceCase) -> None:
    """No example of one split occurs in another one."""
    examples = [
        {str(x.tolist()) for x in case.build(split).sample(KEY, 3).support.x.flatten(0, 1)}
        for split in case.splits
    ]
    pairs = [(a, b) for index, a in enumerate(examples) for b in examples[:index]]
    assert not any(a & b for a, b in pairs)


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
    return str(getattr(target if isinstance(target, type) else type(target), "__name__", target))


def _build_case(target: Any) -> SourceCase:
    if isinstance(target, TaskComponent):
        return SourceCase(type(target), fields_set(target), {})
    if isinstance(target, type) and issubclass(target, TaskComponent):
        return SourceCase(target, {}, {})
    sources = target if isinstance(target, Mapping) else {_get_split(target): target}
    missing = [
        name
        for name in ("spec", "sample", "examples")
        for source in sources.values()
        if not hasattr(source, name)
    ]
    if missing:
        raise TypeError(f"{_target_name(target)} is not a task source: it has no {missing[0]}")
    return SourceCase(None, {}, sources)


def _get_split(source: Any) -> str:
    return str(getattr(getattr(source, "spec", None), "split", "train"))
