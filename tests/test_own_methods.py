"""Mistakes in a method's functions of one task: a sentence with the function and what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

import metalearn as ml
from metalearn.component import MethodComponent, option
from metalearn.executors.executor import make_step
from metalearn.inner import adapt, episodic, sgd, support_loss
from metalearn.testing import METHOD_CHECKS, check_method
from metalearn.types import EpisodeSpec, Learner, Method

SOURCE = ml.tasks.Sinusoid(shots=3, queries=5).build()
LEARNER = ml.models.MLP(sizes=(4,)).build(SOURCE.spec)
Change = Callable[[Any], Any]


def noisy(params: Any) -> Any:
    return {name: value + torch.randn(value.shape) for name, value in params.items()}


class Ordered:
    """Results in a type of a method's own."""


CHANGES: dict[str, tuple[str, Change]] = {
    "items_dict": ("fit", lambda path: path.points[-1]),
    "items_path": ("fit", lambda path: path),
    "items_tensor": ("fit", lambda path: path.points[-1]["head.bias"]),
    "items_few": ("fit", lambda path: path.points[:0]),
    "items_float": ("fit", lambda path: [{**point, "a": 1.0} for point in path.points]),
    "items_object": ("fit", lambda path: Ordered()),
    "items_noise": ("fit", lambda path: list(map(noisy, path.points))),
    "outputs_dict": ("predict", lambda outputs: {"logits": outputs}),
    "outputs_mean": ("predict", lambda outputs: outputs.mean(0)),
    "outputs_noise": ("predict", lambda outputs: outputs + torch.rand(())),
    "outputs_squeeze": ("predict", lambda outputs: outputs.squeeze(-1)),
    "init_float": ("init", lambda params: {**params, "a": 1.0}),
    "init_noise": ("init", noisy),
}


class Own(MethodComponent):
    """Gradient steps from a learned start, with one mistake."""

    name: Literal["own"] = option("own", "The method.")
    mistake: str = option("", "Which of the changes.")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        place, change = CHANGES.get(self.mistake, ("", None))
        loss, rule = support_loss(learner, spec), sgd(0.1)

        def changed(name: str, value: Any) -> Any:
            return change(value) if change is not None and name == place else value

        def fit(meta: Any, support: Any, at: tuple[int, ...], key: Any) -> Any:
            found = changed("fit", adapt(loss, meta, rule, support, at[-1], keep=at))
            return found.points if change is None or place != "fit" else found

        def predict(meta: Any, params: Any, support: Any, query_x: Any) -> Any:
            return changed("predict", learner.apply(params, query_x))

        def init(key: Any) -> Any:
            return changed("init", learner.init(key))

        return episodic(learner, spec, sgd(0.1), fit, predict, inner_steps=1, init=init)


def built(mistake: str) -> Method:
    return Own(mistake=mistake).build(LEARNER, SOURCE.spec)


WORDS = {
    "items_dict": ("fit", "`adapt`", "a dict with the keys layers.0.weight", "list of one result"),
    "items_path": ("fit", "`adapt`", "a Path", "such as adapt(...).points"),
    "items_tensor": ("fit", "`adapt`", "a tensor [1]", "list of one result"),
    "items_few": ("fit", "`adapt`", "0 results for the step indices [1]", "list of one result"),
    "items_float": ("fit", "`adapt`", "a float", "only tensors"),
    "items_object": ("fit", "`adapt`", "an Ordered:", "list of one result"),
    "items_noise": ("fit", "`adapt`", "test_own_methods.py:", "metalearn.rng with a key"),
    "outputs_dict": ("predict", "`predict`", "keys logits", "[M, C], a row for each of the 5"),
    "outputs_mean": ("predict", "`predict`", "a tensor [1]", "[M, C], a row for each of the 5"),
    "outputs_noise": ("predict", "`predict`", "test_own_methods.py:", "what `adapt` has drawn"),
    "outputs_squeeze": ("targets", "5, 1]", "keep the last axis of the predictions"),
    "init_float": ("init", "a float", "only tensors"),
    "init_noise": ("init of the method", "metalearn.rng with a key"),
}


@pytest.mark.parametrize("mistake", CHANGES)
def test_a_mistake_is_one_sentence_that_names_the_function(mistake: str) -> None:
    """In a training step by two executors, and in the test where the mistake shows there."""
    method, episodes = built(mistake), SOURCE.sample(ml.fold_in(1), 2)
    fine = built("").init(ml.fold_in(0))
    noise = mistake in ("items_noise", "outputs_noise")  # outside vmap no line of it is known

    def learn() -> Any:
        state = method.init(ml.fold_in(0)) if "init" in mistake else fine
        return ml.evaluate.learning_curve(method, state.meta, SOURCE, steps=(1,), episodes=2)

    for name in ("vmap", "loop", "learn"):
        with pytest.raises(ml.ConfigError) as caught:
            if name == "learn":
                learn()
            else:
                make_step(method, name)(method.init(ml.fold_in(0)), episodes)
        words = WORDS[mistake][-1:] if noise and name == "loop" else WORDS[mistake]
        for word in words:
            assert word in str(caught.value), (name, word)
        assert "\n" not in str(caught.value)


def test_a_method_without_a_mistake_is_accepted_by_every_executor() -> None:
    method, episodes = built(""), SOURCE.sample(ml.fold_in(1), 2)
    for name in ("vmap", "loop", "traced"):
        make_step(method, name)(method.init(ml.fold_in(0)), episodes)


def test_fewer_points_than_asked_for_are_refused_rather_than_repeated() -> None:
    def fit(meta: Any, support: Any, at: tuple[int, ...], key: Any) -> list[Any]:
        return [meta]

    def predict(meta: Any, params: Any, support: Any, query_x: Any) -> Any:
        return LEARNER.apply(params, query_x)

    method = episodic(LEARNER, SOURCE.spec, sgd(0.1), fit, predict, inner_steps=1)
    meta = method.init(ml.fold_in(0)).meta
    with pytest.raises(ml.ConfigError, match=r"1 results for the step indices \[0, 1, 5\]"):
        ml.evaluate.learning_curve(method, meta, SOURCE, steps=(0, 1, 5), episodes=2)


QUICK = {"check_predictions_have_their_shape", "check_regression_is_learned_or_refused"}
QUICK |= {"check_learning_is_a_function_of_the_tasks_key"}
SKIP = {check.__name__: "slow" for check in METHOD_CHECKS if check.__name__ not in QUICK}


def test_check_method_says_it_once_with_the_names_of_the_checks() -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(Own(mistake="outputs_dict"), skip=SKIP)
    text = str(caught.value)
    assert text.count("a dict with the keys logits") <= 2, text  # of 12 and of 4 queries
    assert all(name in text for name in QUICK), text


def test_check_method_refuses_what_training_on_regression_refuses() -> None:
    with pytest.raises(AssertionError, match="keep the last axis of the predictions"):
        check_method(Own(mistake="outputs_squeeze"), skip=SKIP)
    check_method(Own(), skip=SKIP)


class OfClasses(Own):
    """Class scores alone, and it does not say so."""

    name: Literal["of_classes"] = option("of_classes", "The method.")  # type: ignore[assignment]

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        made = super().build(learner, spec, meta_steps)

        def step(state: Any, episodes: Any) -> Any:
            raise IndexError("no axis of classes")

        return made if spec.classification else made._replace(step=step)


def test_a_method_of_classes_alone_is_asked_to_refuse_regression() -> None:
    with pytest.raises(AssertionError, match=r"require_classes\(self.name, spec\)"):
        check_method(OfClasses(), skip=SKIP)
