"""Learned rules: hand-made ones at the start, finite differences, tasks, horizons, tracing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.component import Component
from metalearn.inner.adapt import adapt
from metalearn.inner.recompute import checkpointing
from metalearn.inner.rules import adam
from metalearn.learned_optimizers import (
    LEARNED_RULES,
    LearnedAdam,
    LearnedMomentum,
    LearnedRates,
    LearnedRule,
    LearnedSGD,
    Theta,
    bind_theta,
)
from metalearn.rng import fold_in, normal
from metalearn.tree import named_leaves, norm, sub, take, tree_map, vmap
from metalearn.types import Batch, Params, UpdateRule

F64 = torch.float64
SHAPES = {"w": (4, 3), "b": (4,), "s": (), "k": (2, 4, 2, 2)}
TASKS, STEPS = 3, 4
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def drawn(name: str, shape: tuple[int, ...], dtype: torch.dtype = F64) -> Tensor:
    return normal(fold_in(3, name), shape, dtype)


def params_of(dtype: torch.dtype = F64) -> Params:
    """No number of them is zero, so that no ReLU stands on its edge."""
    return {name: drawn(name, shape, dtype) for name, shape in SHAPES.items()}


PARAMS = params_of()
DATA = Batch(drawn("x", (TASKS, 6, 3)), drawn("y", (TASKS, 6, 4)))


def loss(params: Params, batch: Batch, step: int) -> Tensor:
    """Of a small network in which every parameter has a say; batch [6, 3] -> []."""
    predictions = torch.tanh(batch.x @ params["w"].T + params["b"]) * params["s"]
    return (predictions - batch.y).square().mean() + 0.1 * params["k"].square().mean() * params[
        "b"
    ].square().sum()


def learned(component: Component, dtype: torch.dtype = F64) -> tuple[LearnedRule, Theta]:
    """The rule and a theta a little away from its start."""
    made: LearnedRule = component.build(dtype, like=params_of(dtype))  # type: ignore[attr-defined]
    theta = made.init(fold_in(0, "theta"))
    near = {
        name: 0.05 * normal(fold_in(1, name), value.shape, dtype) for name, value in theta.items()
    }
    return made, {
        name: value if name.startswith("decay") else value + near[name]
        for name, value in theta.items()
    }


def end(
    made: LearnedRule, theta: Theta, data: Batch, first_order: bool = False, steps: int = STEPS
) -> Tensor:
    """The loss after some steps: what an outer loop would lower."""
    rule = bind_theta(made, theta, steps)
    return loss(
        adapt(loss, PARAMS, rule, data, steps, first_order=first_order).points[-1], data, steps
    )


def follow_rule(rule: UpdateRule, params: Params = PARAMS, steps: int = STEPS) -> list[Params]:
    return adapt(loss, params, rule, take(DATA, 0), steps).points


every_rule = pytest.mark.parametrize("name", LEARNED_RULES)

# at
# their start: known rules

KNOWN: dict[str, tuple[Any, Any]] = {
    "sgd": (LearnedSGD(lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (
        LearnedMomentum(lr=0.03, decay=0.8),
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8),
    ),
    "adam": (
        LearnedAdam(lr=0.02, beta1=0.7, beta2=0.9, eps=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.9), eps=1e-3),
    ),
    "adam_default": (LearnedAdam(), torch.optim.Adam),
    "rates": (LearnedRates(lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
}


def by_torch(make: Any, steps: int = 7) -> list[Params]:
    now = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    theirs, points = make(list(now.values())), []
    for _ in range(steps):
        theirs.zero_grad()
        loss(now, take(DATA, 0), 0).backward()
        theirs.step()
        points.append({name: value.detach().clone() for name, value in now.items()})
    return points


@pytest.mark.parametrize("which", KNOWN)
def test_a_rule_that_has_learned_nothing_is_torchs_own(which: str) -> None:
    """To the last digits, which torch rounds in another order; SGD but for the rounding of one
    product, which some CPUs leave out."""
    component, make = KNOWN[which]
    made = component.build(F64, like=PARAMS)
    ours = follow_rule(made.rule(made.init(fold_in(0, "theta")), 7), steps=7)[1:]
    for mine, theirs in zip(ours, by_torch(make), strict=True):
        limit = 1e-15 if which == "sgd" else 1e-13
        torch.testing.assert_close(mine, theirs, rtol=limit, atol=1e-15)


def test_scalars_mean_what_their_names_say() -> None:
    """Logarithms of factors, and shifts of logits."""
    theta = {"log_lr": 0.7, "logit_beta1": -0.4, "logit_beta2": 0.9, "log_eps": 2.0}
    made = LearnedAdam(lr=0.02, beta1=0.7, beta2=0.9, eps=1e-3).build(F64)
    ours = follow_rule(
        made.rule({name: torch.tensor(value, dtype=F64) for name, value in theta.items()}, 5)
    )

    def decay(start: float, shift: float) -> float:
        return 1 / (1 + math.exp(-(math.log(start / (1 - start)) + shift)))

    rates = {"lr": 0.02 * math.exp(0.7), "eps": 1e-3 * math.exp(2.0)}
    theirs = follow_rule(adam(**rates, beta1=decay(0.7, -0.4), beta2=decay(0.9, 0.9)))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_adam_has_a_finite_outer_gradient_where_a_parameter_meets_no_gradient() -> None:
    made = LearnedAdam(lr=0.1).build(F64)

    def after(theta: Theta) -> Tensor:
        rule = bind_theta(made, theta, 2)
        path = adapt(
            lambda p, batch, step: p["a"].square().sum(),
            {"a": PARAMS["b"], "unused": PARAMS["w"]},
            rule,
            take(DATA, 0),
            2,
        )
        return path.points[-1]["a"].square().sum()

    grads = torch.func.grad(after)(made.init(fold_in(0)))
    assert all(grad.isfinite() for grad in grads.values()) and grads["log_lr"] != 0


#
# what all of them keep


@every_rule
def test_tasks_side_by_side_are_learned_as_alone(name: str) -> None:
    """vmap over tasks with one theta, and with one for each, as evolution strategies have."""
    made, theta = learned(LEARNED_RULES[name]())
    together = vmap(lambda data: end(made, theta, data))(DATA)
    alone = torch.stack([end(made, theta, take(DATA, task)) for task in range(TASKS)])
    torch.testing.assert_close(together, alone, **CLOSE)
    own = tree_map(lambda x: torch.stack([x * (1 + 0.1 * task) for task in range(TASKS)]), theta)
    together = vmap(lambda theta, data: end(made, theta, data))(own, DATA)
    alone = torch.stack([end(made, take(own, task), take(DATA, task)) for task in range(TASKS)])
    torch.testing.assert_close(together, alone, **CLOSE)


@every_rule
def test_the_outer_gradient_is_that_of_finite_differences(name: str) -> None:
    """Through the rule, its gradients (second derivatives) and its state, along two directions."""
    made, theta = learned(LEARNED_RULES[name]())
    data = take(DATA, 1)
    grads = torch.func.grad(lambda theta: end(made, theta, data))(theta)
    assert all(bool((grad != 0).any()) for grad in grads.values()), "a part of theta has no say"
    for number in range(2):
        way = {
            leaf: normal(fold_in(7, leaf, number), value.shape, F64)
            for leaf, value in theta.items()
        }
        way = {
            leaf: 0.1 * value if leaf.startswith("decay") else value for leaf, value in way.items()
        }
        ends = [
            end(made, {leaf: theta[leaf] + far * way[leaf] for leaf in theta}, data)
            for far in (1e-6, -1e-6)
        ]
        slope = torch.stack([(grads[leaf] * way[leaf]).sum() for leaf in theta]).sum()
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=2e-5, atol=1e-9)


@every_rule
def test_first_order_takes_the_gradients_for_constants(name: str) -> None:
    """After one step there is no difference; after several there is, and a loop by hand agrees."""
    made, theta = learned(LEARNED_RULES[name]())
    data = take(DATA, 1)

    def by_hand(theta: Theta) -> Tensor:
        rule, now = made.rule(theta, STEPS), PARAMS
        state = rule.init(now)
        for step in range(STEPS):
            grads, value = torch.func.grad_and_value(lambda p, step=step: loss(p, data, step))(now)
            updates, state = rule.update(tree_map(lambda g: g.detach(), grads), state, now, value)
            now = {leaf: now[leaf] + updates[leaf] for leaf in now}
        return loss(now, data, STEPS)

    first = torch.func.grad(lambda theta: end(made, theta, data, first_order=True))(theta)
    torch.testing.assert_close(first, torch.func.grad(by_hand)(theta), **CLOSE)
    second = torch.func.grad(lambda theta: end(made, theta, data))(theta)
    assert norm(sub(first, second)) > 1e-6 * norm(second)
    one = [
        torch.func.grad(lambda theta, fo=fo: end(made, theta, data, fo, 1))(theta)
        for fo in (True, False)
    ]
    torch.testing.assert_close(one[0], one[1], **CLOSE)


@every_rule
def test_recomputed_steps_give_the_same_gradient(name: str) -> None:
    made, theta = learned(LEARNED_RULES[name]())
    plain = torch.func.grad(lambda theta: end(made, theta, take(DATA, 0)))(theta)
    with checkpointing():
        again = torch.func.grad(lambda theta: end(made, theta, take(DATA, 0)))(theta)
    torch.testing.assert_close(again, plain, **CLOSE)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_state_keeps_its_form(name: str, dtype: torch.dtype) -> None:
    """Names, shapes and dtype do not depend on the number of steps; leaves are float tensors."""
    made, theta = learned(LEARNED_RULES[name](), dtype)
    params = params_of(dtype)
    rule = made.rule(theta, 9)
    state = rule.init(params)
    forms = []
    for _ in range(3):
        forms.append(
            {leaf: (value.shape, value.dtype) for leaf, value in named_leaves(state).items()}
        )
        updates, state = rule.update(params, state, params, params["s"])
        expected = {leaf: (p.shape, dtype) for leaf, p in params.items()}
        assert {leaf: (u.shape, u.dtype) for leaf, u in updates.items()} == expected
        assert all(bool(u.isfinite().all()) for u in updates.values())
    assert forms[0] == forms[1] == forms[2] and {kind for _, kind in forms[0].values()} == {dtype}
    assert state["count"] == 3 and state["horizon"] == 9


@every_rule
def test_the_horizon_lies_in_the_state(name: str) -> None:
    """A state under a rule with another horizon keeps its first one, and uses the current theta."""
    made, theta = learned(LEARNED_RULES[name]())
    first, other = made.rule(theta, 9), made.rule(theta, torch.tensor(90))
    grads = {leaf: 0.5 * value for leaf, value in PARAMS.items()}
    _, state = first.update(grads, first.init(PARAMS), PARAMS, PARAMS["s"])
    mine, theirs = (rule.update(grads, state, PARAMS, PARAMS["s"]) for rule in (first, other))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    fresh = other.init(PARAMS)
    assert fresh["horizon"] == 90
    _, long = other.update(grads, fresh, PARAMS, PARAMS["s"])
    differs = norm(sub(other.update(grads, long, PARAMS, PARAMS["s"])[0], mine[0])) > 0
    assert bool(differs) == (name == "hyper")  # the one that says it looks at the horizon
    later = made.rule(tree_map(lambda x: 1.5 * x, theta), 9).update(
        grads, state, PARAMS, PARAMS["s"]
    )[0]
    assert norm(sub(later, mine[0])) > 0


@every_rule
def test_gradients_may_come_in_any_order(name: str) -> None:
    made, theta = learned(LEARNED_RULES[name]())
    rule = made.rule(theta, 9)
    grads = {leaf: 0.5 * value for leaf, value in PARAMS.items()}
    turned = dict(reversed(grads.items()))
    one, two = (
        rule.update(given, rule.init(PARAMS), PARAMS, PARAMS["s"])[0] for given in (grads, turned)
    )
    assert all(torch.equal(one[leaf], two[leaf]) for leaf in PARAMS)


@every_rule
def test_every_rule_can_be_learned(name: str) -> None:
    """Twenty steps of Adam on theta lower the losses after two steps on each of three tasks."""
    component = LEARNED_RULES[name]()
    made = component.build(F64, like=PARAMS)
    theta = made.init(fold_in(0, "theta"))
    outer = adam(0.1)
    state = outer.init(theta)
    ends = vmap(lambda theta, data: end(made, theta, data, True, 2), in_dims=(None, 0))
    begin = ends(theta, DATA).mean()
    for _ in range(20):
        grads = torch.func.grad(lambda theta: ends(theta, DATA).mean())(theta)
        updates, state = outer.update(grads, state, theta, begin)
        theta = {leaf: theta[leaf] + updates[leaf] for leaf in theta}
    assert ends(theta, DATA).mean() < 0.98 * begin, (float(begin), float(ends(theta, DATA).mean()))


@every_rule
def test_a_traced_rule_equals_the_rule(name: str) -> None:
    """Nothing of it depends on the values of tensors: other data, one graph."""
    made, theta = learned(LEARNED_RULES[name]())
    graph = make_fx(lambda theta, data: end(made, theta, data, steps=2))(theta, take(DATA, 0))
    for task in range(TASKS):
        torch.testing.assert_close(
            graph(theta, take(DATA, task)), end(made, theta, take(DATA, task), steps=2), **CLOSE
        )


@every_rule
def test_options_of_a_rule(name: str) -> None:
    kind = LEARNED_RULES[name]
    made = kind()
    assert made.name == name and kind.model_validate(made.model_dump(mode="json")) == made  # type: ignore[attr-defined]
    assert kind.sentence().endswith(".")
    assert all(field.description for field in kind.model_fields.values())
    with pytest.raises(ValueError, match="frozen"):
        made.name = "other"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="not_a_field"):
        kind(not_a_field=1)
