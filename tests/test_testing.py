"""The contract suite as users call it: components that pass, and the messages of failures."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

import metalearn as ml
from metalearn.component import option
from metalearn.inner.rules import Adam
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


def test_models_are_checked_under_every_normalisation() -> None:
    check_model(ml.models.MLP(sizes=(7, 5)))
    with pytest.raises(AssertionError, match=r"check_the_start_is_a_function_of_the_key_alone"):
        check_model(Dropping)


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
