"""The builder of methods: two functions of one task, and hooks that hold in training and after."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from metalearn.algorithms import ALGORITHMS, MAML
from metalearn.component import option
from metalearn.config.registry import METHODS
from metalearn.inner.method import episodic
from metalearn.inner.rules import sgd
from metalearn.losses import criterion
from metalearn.models import MLP
from metalearn.rng import fold_in
from metalearn.tasks import Sinusoid
from metalearn.tree import take, tree_map
from metalearn.types import Batch, EpisodeSpec, NullLedger, UpdateRule

SOURCE = Sinusoid(shots=5, queries=5).build(dtype=torch.float64)
LEARNER = MLP(sizes=(8,)).build(SOURCE.spec)


class SignMAML(MAML):
    """MAML whose inner loop takes steps of the gradient's sign."""

    name: Literal["sign_maml"] = option("sign_maml", "The method.")  # type: ignore[assignment]

    def inner_rule(self, spec: EpisodeSpec) -> UpdateRule:
        rate = self.inner_lr

        def update(grads: Any, state: Any, params: Any, loss: Any) -> tuple[Any, Any]:
            return tree_map(lambda g: -rate * g.sign(), grads), state

        return UpdateRule(lambda params: {}, update)


def sign_steps(meta: Any, support: Batch, steps: int, rate: float) -> Any:
    """The same by hand."""
    params, loss_of = meta, criterion(SOURCE.spec)
    for _ in range(steps):
        grads = torch.func.grad(lambda at: loss_of(LEARNER.apply(at, support.x), support.y))(params)
        params = {name: value - rate * grads[name].sign() for name, value in params.items()}
    return params


def test_the_inner_rule_of_a_variant_holds_on_new_tasks_too() -> None:
    method = SignMAML(inner_lr=0.05, inner_steps=2).build(LEARNER, SOURCE.spec)
    meta, episode = method.init(fold_in(0)).meta, SOURCE.sample(fold_in(1), 2)
    learned = method.learn(meta, episode.support, episode.query.x, (0, 3))
    for task in range(2):
        one = take(episode, task)
        params = sign_steps(meta, one.support, 3, 0.05)
        expected = LEARNER.apply(params, one.query.x)
        torch.testing.assert_close(learned.predictions[task, 1], expected, rtol=1e-9, atol=1e-9)


def test_the_inner_rule_of_a_variant_holds_in_training() -> None:
    method = SignMAML(inner_lr=0.05, inner_steps=1).build(LEARNER, SOURCE.spec)
    meta, one = method.init(fold_in(0)).meta, take(SOURCE.sample(fold_in(1), 1), 0)
    _, found = method.task_grad(meta, one)  # type: ignore[misc]
    params = sign_steps(meta, one.support, 1, 0.05)
    error = criterion(SOURCE.spec)(LEARNER.apply(params, one.query.x), one.query.y)
    torch.testing.assert_close(found["query_loss"], error, rtol=1e-9, atol=1e-9)


# Methods that compare classes: tests/test_methods_reference.py looks at them.
OF_CLASSES = {"proto_net", "proto_maml", "matching_net"}
OF_CLASSES |= {"relation_net", "metaopt_net", "metaopt_svm", "meta_baseline", "pmf"}


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - OF_CLASSES))
def test_adapt_and_predict_of_one_task_equal_learn(name: str) -> None:
    method = ALGORITHMS[name]().build(LEARNER, SOURCE.spec)
    meta, episode = method.init(fold_in(0)).meta, SOURCE.sample(fold_in(1), 2)
    keys = fold_in(fold_in(2), torch.arange(2))
    learned = method.learn(meta, episode.support, episode.query.x, (0, 2), key=keys)
    assert method.adapt is not None and method.predict is not None
    for task in range(2):
        one = take(episode, task)
        for point, step in enumerate((0, 2)):
            item = method.adapt(meta, one.support, step, keys[task])
            found = method.predict(meta, item, one.support, one.query.x)
            torch.testing.assert_close(
                found, learned.predictions[task, point], rtol=1e-9, atol=1e-9
            )


def test_a_method_is_two_functions() -> None:
    """Ridge regression on fixed inputs: no steps, a closed form, learned scale of the penalty."""

    def adapt_task(meta: Any, support: Batch, at: Any, key: Any) -> list[Any]:
        x, penalty = support.x, meta["penalty"].exp()
        gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        return [torch.linalg.solve(gram, x.T @ support.y)]

    def predict(meta: Any, weights: Any, support: Batch, query_x: Any) -> Any:
        return query_x @ weights

    def init(key: Any) -> Any:
        return {"penalty": torch.zeros(1, dtype=torch.float64)}

    method = episodic(LEARNER, SOURCE.spec, sgd(0.1), adapt_task, predict, inner_steps=0, init=init)
    state = method.init(fold_in(0))
    after, metrics = method.step(state, SOURCE.sample(fold_in(1), 3))  # type: ignore[misc]
    assert not method.traits.uses_steps and not method.traits.fixed_ways
    assert (after.meta["penalty"] != state.meta["penalty"]).all()
    assert metrics["query_loss"].isfinite()


def test_the_null_ledger_has_every_call_of_the_protocol() -> None:
    ledger = NullLedger()
    with ledger.span("adapt"):
        ledger.add("adapt", 1.0, tasks=2)
    assert ledger.run("adapt", lambda x: x + 1, 1) == 2
    assert ledger.totals() == {} and ledger.under("tune").totals() == {}


def test_every_method_has_the_facts_that_other_code_needs() -> None:
    for name, kind in METHODS.items():
        assert kind.family in {
            "initialization",
            "metric",
            "optimizer",
            "transfer",
            "search",
            "scratch",
            "in_context",
        }, name
        assert kind.model_fields["name"].default == name
