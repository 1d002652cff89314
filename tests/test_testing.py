"""The contract suite as users call it: components that pass, and the messages of failures."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from own_sources import (
    Groups,
    Lines,
    Points,
    by_split,
    changed,
    defined,
    with_batches,
    with_info,
)

import metalearn as ml
import metalearn.testing
from metalearn.component import option
from metalearn.inner.rules import Adam
from metalearn.rng import fold_in
from metalearn.testing import METHOD_CHECKS, Clusters, check_method, check_model, check_source

SLOW = dict.fromkeys(
    ("check_it_learns", "check_compiled_equals_eager", "check_the_second_call_compiles_nothing"),
    "slow, and shown by the example of a plug-in, in test_wheel.py",
)


class SignMAML(ml.algorithms.MAML):
    """MAML whose inner loop follows the sign of the gradient (Fan et al. 2021)."""

    name: Literal["sign_maml"] = option("sign_maml", "The method.")  # type: ignore[assignment]

    def inner_rule(self, spec: Any) -> Any:
        def update(grads: Any, state: Any, params: Any, loss: Any) -> Any:
            return {name: -self.inner_lr * g.sign() for name, g in grads.items()}, state

        return ml.UpdateRule(lambda params: {}, update)


class Random(ml.algorithms.MAML):
    """MAML with a start that is not a function of its key."""

    name: Literal["random"] = option("random", "The method.")  # type: ignore[assignment]

    def build(self, learner: Any, spec: Any, meta_steps: int | None = None) -> Any:
        made = super().build(learner, spec, meta_steps)

        def init(key: Any) -> Any:
            state = made.init(key)
            return state._replace(meta={n: v + torch.rand(()) for n, v in state.meta.items()})

        return made._replace(init=init)


def test_a_method_of_somebody_passes() -> None:
    check_method(SignMAML(inner_lr=0.05, outer=Adam(lr=0.02)), skip=SLOW)


def test_a_broken_method_fails_with_the_names_of_the_checks() -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(Random, skip=SLOW)
    text = str(caught.value)
    assert text.startswith(f"Random fails 3 of {len(METHOD_CHECKS)} checks:"), text
    assert "check_init_is_a_function_of_the_key: The same key gives the same bits" in text
    assert "init draws from torch's own generator: use metalearn.rng with the key" in text


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(TypeError, match=r"MLP is not a subclass of .*MethodComponent"):
        check_method(ml.models.MLP)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"MAML is not a subclass of .*ModelComponent"):
        check_model(ml.algorithms.MAML)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dict is not a task source: it has no spec"):
        check_source({"train": {"spec": None}})
    with pytest.raises(ValueError, match="did you mean 'check_it_learns'"):
        check_method(SignMAML, skip={"check_it_learn": "slow"})


class Dropping(ml.models.MLP):
    """A perceptron whose features depend on torch's own generator."""

    name: Literal["dropping"] = option("dropping", "The model.")  # type: ignore[assignment]

    def build(self, spec: Any) -> Any:
        made = super().build(spec)

        def init(key: Any) -> Any:
            return {n: v + 0 * torch.rand(()) for n, v in made.init(key).items()}

        return made._replace(init=init)


class Shifted(ml.models.MLP):
    """A perceptron that adds 1 after its head."""

    name: Literal["shifted"] = option("shifted", "The model.")  # type: ignore[assignment]

    def build(self, spec: Any) -> Any:
        made = super().build(spec)
        return made._replace(apply=lambda *args, **context: made.apply(*args, **context) + 1)


def test_models_are_checked_under_every_normalisation() -> None:
    check_model(ml.models.MLP(sizes=(7, 5)))
    with pytest.raises(AssertionError, match=r"check_the_start_is_a_function_of_the_key_alone"):
        check_model(Dropping)
    with pytest.raises(AssertionError) as caught:
        check_model(Shifted)
    text = "apply must be features @ head.weight.T + head.bias, and differs by more than rtol "
    assert f"{text}1e-12, atol 1e-12 in its value (by up to 1)" in str(caught.value)


class Shifting(Clusters):
    """Tasks whose examples depend on how many are drawn at once."""

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        found = super().sample(key, num_tasks, start)
        return found._replace(support=found.support._replace(x=found.support.x + num_tasks))


def test_sources_are_checked_as_components_and_as_objects() -> None:
    check_source(ml.tasks.Sinusoid(shots=3, queries=2))
    check_source({split: ml.tasks.Sinusoid().build(split=split) for split in ("train", "test")})
    with pytest.raises(AssertionError) as caught:
        check_source(Shifting("train", 12))
    assert "check_an_episode_depends_on_its_key_and_number_alone" in str(caught.value)


def ignoring_key(self: Any, key: Any, num_tasks: int, start: int = 0) -> Any:
    return Lines.sample(self, fold_in(7), num_tasks, start)


def constant(value: Any) -> Any:
    return with_batches(lambda batch: batch._replace(y=torch.full_like(batch.y, value)))


WRONG: dict[str, tuple[Any, str]] = {
    "split": (
        {split: Lines() for split in ("train", "test")},
        "spec.split of the source of the split 'test' must be 'test', and is 'train'",
    ),
    "y": (
        changed(with_batches(lambda b: b._replace(y=b.y[..., 0]))),
        "support.y of sample must be torch.float32 of shape (7, 5, 1), and is torch.float32 of "
        "shape (7, 5)",
    ),
    "key": (
        defined(sample=ignoring_key),
        "sample must draw its tasks from the key: sample(key, 7) returned the same tasks for 8 "
        "different keys (repeated tasks are fine",
    ),
    "number": (
        defined(sample=lambda self, key, n, start=0: self.tasks(key.expand(n), key.expand(n))),
        "task t must depend on start + t: for each of 8 keys, the 7 tasks of sample(key, 7) are "
        "all the same (some of them may be)",
    ),
    "start": (
        defined(sample=lambda self, key, n, start=0: Lines.sample(self, key, n)),
        "sample(key, 1, start=3) must return task 3 of sample(key, 7), and differs in support.x, ",
    ),
    "info": (changed(with_info(step=None)), "info must have 'step', and has key"),
    "labels": (
        changed(constant(1), Points),
        "y of a task's support set must have each label 0 .. 2 2 times, and is [1, 1, 1, 1, 1, 1]",
    ),
    "finite": (changed(constant(torch.inf)), "support.y must be finite, and has values that are"),
    "pair": (
        changed(lambda e: e[:2]),
        "check_an_episode_depends_on_its_key_and_number_alone, check_shapes_are_those_of_the_spec, "
        "check_labels_are_a_permutation_and_no_example_is_in_both_sets:\n    AssertionError: "
        "sample(key, 7, 0) must be of type Episode, and is of type tuple",
    ),
    "both splits": (
        {"train": Lines(), "test": type("Own", (Lines,), {"keys": Lines().keys})("test")},
        "15 examples of the support sets of 3 tasks are in train and in test",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_failures_say_what_was_expected_and_what_was_found(name: str) -> None:
    sources, words = WRONG[name]
    with pytest.raises(AssertionError) as caught:
        check_source(sources)
    assert words in str(caught.value), caught.value


def test_an_error_of_the_source_has_its_place() -> None:
    with pytest.raises(AssertionError) as caught:
        check_source(defined(sample=lambda self, key, n, start=0: {}["weather"]))
    text = str(caught.value)
    assert text.startswith("Own fails 4 of 8 checks:") and text.count("KeyError: 'weather'") == 1
    assert f"at {__file__}" in text and "called at" in text


def test_a_source_of_few_tasks_passes() -> None:
    """Two keys give the same tasks by chance, and a key the same task twice."""
    check_source(by_split(Groups))
    check_source(by_split(type("Pair", (Groups,), {"groups": 2})))
    check_source(by_split(Points))


def test_everything_that_a_source_lacks_is_listed() -> None:
    with pytest.raises(TypeError) as caught:
        check_source(
            by_split(type("First", (), {"__init__": lambda self, split: None, "sample": 3}))
        )
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "First has no spec",
        "First.sample is of type int",
        "First has no examples",
    ]


def test_every_assertion_of_the_contract_suite_has_a_sentence() -> None:
    """Except those that tell the type checker that a value is there."""
    bare = []
    for path in Path(metalearn.testing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assert) and node.msg is None:
                text = ast.unparse(node.test)
                bare += [] if text.endswith(" is not None") else [f"{path.name}: {text}"]
            elif isinstance(node, ast.Attribute) and node.attr == "assert_close":
                bare += [] if path.name == "sentences.py" else [f"{path.name}: assert_close"]
    assert bare == []
