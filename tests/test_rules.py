"""Update rules against torch.optim over their settings, and what every rule of the table keeps;
float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.inner.rules import (
    RULES,
    adam,
    make_schedule,
    momentum,
    per_parameter,
    rate_as_input,
    sgd,
)
from metalearn.rng import fold_in, normal
from metalearn.tree import named_leaves
from metalearn.types import EpisodeSpec, UpdateRule

F64 = torch.float64
SHAPES = {"w": (4, 3), "b": (4,), "s": ()}
COUNT = 7
ZERO = torch.zeros((), dtype=F64)


def tree(name: str, *index: int) -> dict[str, Tensor]:
    """Numbers none of which is zero or small."""
    made = {
        leaf: normal(fold_in(1, name, leaf, *index), shape, F64) for leaf, shape in SHAPES.items()
    }
    return {leaf: value + 0.1 * value.sign() for leaf, value in made.items()}


def run(
    rule: UpdateRule, steps: int = COUNT, dtype: torch.dtype = F64
) -> tuple[list[dict[str, Tensor]], Any]:
    """Parameters after every step on gradients that follow the parameters, and the last state."""
    params = {name: value.to(dtype) for name, value in tree("start").items()}
    state, points = rule.init(params), []
    for step in range(steps):
        updates, state = rule.update(gradient(params, step), state, params, ZERO.to(dtype))
        params = {name: params[name] + updates[name] for name in params}
        points.append(params)
    return points, state


def gradient(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    noise = tree("gradient", step)
    return {
        name: (0.5 * value + noise[name].to(value.dtype)).detach() for name, value in params.items()
    }


def run_torch(make: Any, factors: list[float]) -> list[dict[str, Tensor]]:
    """The same by a rule of torch.optim, whose step size is multiplied by a factor
    at every step."""
    params = {name: value.clone().requires_grad_() for name, value in tree("start").items()}
    theirs, points = make(params.values()), []
    base = theirs.param_groups[0]["lr"]
    for step, factor in enumerate(factors):
        theirs.param_groups[0]["lr"] = base * factor
        for name, grad in gradient(params, step).items():
            params[name].grad = grad
        theirs.step()
        points.append({name: value.detach().clone() for name, value in params.items()})
    return points


def torchs(rule: Any) -> Any:
    """The maker of torch's own rule with the settings of a component of ours."""
    known: dict[str, Any] = {
        "sgd": lambda values: torch.optim.SGD(values, lr=rule.lr),
        "momentum": lambda values: torch.optim.SGD(values, lr=rule.lr, momentum=rule.decay),
        "adam": lambda values: torch.optim.Adam(
            values, lr=rule.lr, betas=(rule.beta1, rule.beta2), eps=rule.eps
        ),
    }
    return known[rule.name]


FACTORS = {
    "constant": lambda step, total: 1.0,
    "linear": lambda step, total: max(0.0, 1 - step / total),
    "cosine": lambda step, total: 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))),
}
SETTINGS: dict[str, list[dict[str, float]]] = {
    "sgd": [{}],
    "momentum": [{"decay": 0.0}, {"decay": 0.5}, {"decay": 0.99}],
    "adam": [
        {"beta1": beta1, "beta2": beta2, "eps": eps}
        for beta1, beta2, eps in itertools.product((0.0, 0.9), (0.5, 0.999), (1e-8, 1e-2))
    ],
}
PRODUCT = [
    pytest.param(RULES[name](lr=lr, schedule=curve, **more), id=f"{name}-{place}-{lr}-{curve}")
    for name in RULES
    for place, more in enumerate(SETTINGS.get(name, [{}]))
    for lr in (0.003, 0.3)
    for curve in FACTORS
]


@pytest.mark.parametrize("rule", PRODUCT)
def test_a_rule_is_torchs_own(rule: Any) -> None:
    """Seven steps; the schedules end at the fifth, and beyond it stay at their end."""
    factors = [FACTORS[rule.schedule](step, 5) for step in range(COUNT)]
    ours, theirs = run(rule.build(5))[0], run_torch(torchs(rule), factors)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    moved = max(float((ours[0][name] - tree("start")[name]).abs().max()) for name in SHAPES)
    assert moved > 1e-3 * rule.lr


@pytest.mark.parametrize("name", RULES)
def test_steps_at_milestones_are_those_of_torchs_scheduler(name: str) -> None:
    """With and without the length of the run, which milestones do not depend on."""
    rule = RULES[name](lr=0.1, schedule="steps", milestones=(2, 3, 5), gamma=0.2)
    weight = torch.zeros(1, requires_grad=True)
    plain = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(plain, [2, 3, 5], gamma=0.2)
    factors = []
    for _ in range(COUNT):
        factors.append(plain.param_groups[0]["lr"])
        plain.step()
        scheduler.step()
    theirs = run_torch(torchs(rule), factors)
    for length in (None, 5):
        torch.testing.assert_close(run(rule.build(length))[0], theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("curve", FACTORS)
@pytest.mark.parametrize("name", RULES)
def test_clipping_and_weight_decay_are_those_around_torchs_rule(name: str, curve: str) -> None:
    """Gradients scaled to their limit before the step, lr * factor * decay of p taken away."""
    options: dict[str, Any] = {"lr": 0.05, "schedule": curve, "clip": 2.0, "weight_decay": 0.3}
    rule = RULES[name](**options)
    ours = run(rule.build(5))[0]
    params = {leaf: value.clone().requires_grad_() for leaf, value in tree("start").items()}
    theirs = torchs(rule)(params.values())
    for step in range(COUNT):
        lr = 0.05 * FACTORS[curve](step, 5)
        theirs.param_groups[0]["lr"] = lr
        for leaf, grad in gradient(params, step).items():
            params[leaf].grad = grad
        size = torch.nn.utils.get_total_norm([param.grad for param in params.values()])
        assert size > 2  # the limit is met
        for param in params.values():
            param.grad *= 2 / size
            param.data.mul_(1 - lr * 0.3)
        theirs.step()
        torch.testing.assert_close(ours[step], dict(params), rtol=1e-11, atol=1e-13)
    without = run(RULES[name](**{**options, "clip": 1e9, "weight_decay": 0.0}).build(5))[0]
    plain = run(RULES[name](lr=0.05, schedule=curve).build(5))[0]
    torch.testing.assert_close(without, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_through_a_rule_is_finite_where_gradients_are_zero(name: str) -> None:
    """By three steps on a function without a slope at the start, as of a dead unit."""
    for dtype in (torch.float32, F64):
        rule = RULES[name](lr=0.1, clip=1.0).build()

        def end(start: Tensor, rule: UpdateRule = rule) -> Tensor:
            params, state = {"w": start}, rule.init({"w": start})
            for _ in range(3):
                grads = torch.func.grad(lambda p: (p["w"] ** 4).sum())(params)
                updates, state = rule.update(grads, state, params, start.new_zeros(()))
                params = {"w": params["w"] + updates["w"]}
            return params["w"].sum()

        found = torch.func.grad(end)(torch.tensor([0.0, 1.0], dtype=dtype))
        assert found.isfinite().all() and found[0] == 1


def test_the_root_of_adam_changes_no_value() -> None:
    """v_hat below the square of eps, down to zero, in both precisions."""
    for dtype in (torch.float32, F64):
        grads = {"w": torch.tensor([0.0, 1e-30, 1e-18, 1e-12, 1e-6, 1.0], dtype=dtype)}
        params, g = {"w": torch.zeros(6, dtype=dtype)}, grads["w"]
        rule, count = adam(0.1), torch.ones((), dtype=dtype)
        updates, _ = rule.update(grads, rule.init(params), params, ZERO.to(dtype))
        first, second = 0.9 * 0 + (1 - 0.9) * g, 0.999 * 0 + (1 - 0.999) * g * g
        root = (second / (1 - 0.999**count)).sqrt()
        assert torch.equal(updates["w"], -0.1 * (first / (1 - 0.9**count)) / (root + 1e-8))


# what every rule keeps

each_rule = pytest.mark.parametrize("name", RULES)


@each_rule
@pytest.mark.parametrize("curve", FACTORS)
def test_state_has_the_parameters_dtype_and_keeps_its_form(name: str, curve: Any) -> None:
    """Float leaves only, counts included: a step compiles once, and a checkpoint is
    only tensors."""
    for dtype in (torch.float32, F64):
        rule = RULES[name](schedule=curve).build(10)
        params = {leaf: value.to(dtype) for leaf, value in tree("start").items()}
        before = named_leaves(rule.init(params))
        points, state = run(rule, dtype=dtype)
        after = named_leaves(state)
        expected = {n: (v.shape, v.dtype) for n, v in after.items()}
        assert {n: (v.shape, v.dtype) for n, v in before.items()} == expected
        assert {v.dtype for v in [*after.values(), *points[-1].values()]} == {dtype}
        assert "count" not in after or after["count"] == COUNT


@each_rule
def test_an_update_writes_into_nothing(name: str) -> None:
    rule = RULES[name](schedule="linear").build(10)
    params, grads = tree("start"), tree("gradient", 0)
    _, state = rule.update(grads, rule.init(params), params, ZERO)
    given = [params, grads, state]
    before = {n: v.clone() for n, v in named_leaves(given).items()}
    first, _ = rule.update(grads, state, params, ZERO)
    second, _ = rule.update(grads, state, params, ZERO)
    assert all(torch.equal(v, before[n]) for n, v in named_leaves(given).items())
    assert all(torch.equal(first[n], second[n]) for n in first)


@each_rule
def test_a_rule_batches_over_tasks(name: str) -> None:
    rule = RULES[name](lr=0.1, schedule="cosine").build(10)
    both = [tree("start", n) for n in range(3)]
    stacked = {leaf: torch.stack([one[leaf] for one in both]) for leaf in SHAPES}

    def two_steps(params: dict[str, Tensor]) -> dict[str, Tensor]:
        state = rule.init(params)
        for _ in range(2):
            updates, state = rule.update(
                {n: v.sin() for n, v in params.items()}, state, params, ZERO
            )
            params = {n: params[n] + updates[n] for n in params}
        return params

    together = torch.func.vmap(two_steps)(stacked)
    for place, one in enumerate(both):
        torch.testing.assert_close(
            {n: v[place] for n, v in together.items()}, two_steps(one), rtol=1e-12, atol=0
        )


@each_rule
def test_settings_out_of_range_are_refused(name: str) -> None:
    fields = set(RULES[name].model_fields)
    wrong = [
        {"lr": 0},
        {"lr": -1},
        {"lr": math.inf},
        {"lr": math.nan},
        {"schedule": "steps"},
        {"milestones": [3]},
        {"schedule": "steps", "milestones": [4, 2]},
        {"schedule": "steps", "milestones": [0]},
        {"schedule": "steps", "milestones": [2], "gamma": 1.0},
        {"schedule": "steps", "milestones": [2], "gamma": [0.5, 0.5]},
        {"schedule": "steps", "milestones": [2, 3], "gamma": [0.5, 1.5]},
        {"l2": 0.1, "weight_decay": 0.1},
        {"clip": 1.0, "clip_value": 1.0},
        {"momentum_": 1},
    ]
    wrong += [{field: 1} for field in fields & {"decay", "beta1", "beta2"}] + [
        {f: 0} for f in fields & {"eps"}
    ]
    for one in wrong:
        with pytest.raises(ValueError):
            RULES[name](**one)
    made = RULES[name]()
    assert made.name == name and RULES[name].model_validate_json(made.model_dump_json()) == made  # type: ignore[attr-defined]


#
# single rules


def test_a_schedule_needs_a_length() -> None:
    assert make_schedule("linear", None) is None
    assert make_schedule("cosine", None) is None
    assert make_schedule("constant", 5) is None
    points = {name: make_schedule(name, 4) for name in ("linear", "cosine")}
    counts = torch.arange(6, dtype=F64)
    assert points["linear"](counts).tolist() == [1, 0.75, 0.5, 0.25, 0, 0]  # type: ignore[misc]
    half = 0.5**0.5 / 2
    assert points["cosine"](counts).tolist() == pytest.approx(
        [1, 0.5 + half, 0.5, 0.5 - half, 0, 0], abs=1e-15
    )  # type: ignore[misc]
    torch.testing.assert_close(
        run(RULES["adam"](schedule="linear").build(None))[0],
        run(RULES["adam"]().build())[0],
        rtol=0,
        atol=0,
    )


def test_a_rate_for_every_parameter() -> None:
    rates = tree("rates")
    points, state = run(per_parameter(rates), 1)
    start, grads = tree("start"), gradient(tree("start"), 0)
    torch.testing.assert_close(state, {"rates": rates}, rtol=0, atol=0)
    torch.testing.assert_close(
        points[0], {n: start[n] - rates[n] * grads[n] for n in start}, rtol=1e-14, atol=0
    )


def test_ten_times_the_decay_of_torchs_descent_with_momentum_shrinks_as_much() -> None:
    """Decoupled decay passes no momentum of 0.9, torch's does: the setting of the experiments."""
    rule = RULES["momentum"](lr=0.05, weight_decay=0.005).build()
    params, state = {"w": torch.ones(1, dtype=F64)}, rule.init({"w": torch.ones(1, dtype=F64)})
    leaf = torch.ones(1, dtype=F64, requires_grad=True)
    other = torch.optim.SGD([leaf], lr=0.05, momentum=0.9, weight_decay=0.0005)
    leaf.grad = torch.zeros_like(leaf)
    for _ in range(2000):
        updates, state = rule.update({"w": torch.zeros(1, dtype=F64)}, state, params, ZERO)
        params = {"w": params["w"] + updates["w"]}
        other.step()
    torch.testing.assert_close(params["w"], leaf.detach(), rtol=5e-3, atol=0)
    assert params["w"] < 0.7


def test_momentum_of_nothing_is_descent() -> None:
    torch.testing.assert_close(run(momentum(0.1, 0.0))[0], run(sgd(0.1))[0], rtol=1e-14, atol=0)


def test_slopes_through_adam_at_a_gradient_of_zero_are_numbers() -> None:
    """The root has an infinite slope at 0: it is met at the smallest number, or at `eps_root`."""

    def moved(grad: Tensor, eps_root: float) -> Tensor:
        rule = adam(0.1, eps_root=eps_root)
        updates, _ = rule.update({"x": grad}, rule.init({"x": grad}), {"x": grad}, ZERO)
        out: Tensor = updates["x"]
        return out

    at = torch.tensor(0.0, dtype=F64)
    slope = torch.func.grad(moved)(at, 0.0)
    torch.testing.assert_close(slope, torch.tensor(-0.1 / 1e-8, dtype=F64))
    slope = torch.func.grad(moved)(at, 1e-8)
    torch.testing.assert_close(slope, torch.tensor(-0.1 / (1e-4 + 1e-8), dtype=F64))


@pytest.mark.parametrize(
    "rule", [sgd(0.1), momentum(0.1, 0.9), adam(0.1)], ids=["sgd", "momentum", "adam"]
)
def test_rules_can_be_differentiated(rule: UpdateRule) -> None:
    """What two steps lead to, by finite differences: meta-gradients go through these rules."""

    def end(start: Tensor) -> Tensor:
        x, state = start, rule.init(start)
        for _ in range(2):
            updates, state = rule.update(x.sin() + 0.3, state, x, ZERO)
            x = x + updates
        return x

    assert torch.autograd.gradcheck(end, (normal(fold_in(2), (5,), F64).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_as_an_input_is_the_number_to_the_last_bit(dtype: torch.dtype) -> None:
    """Whatever the spec's dtype, and whatever device new tensors go to by default."""
    spec = EpisodeSpec("regression", 1, 2, 2, (1,), 1, 1, dtype=torch.float32)
    grads = {"w": torch.randn(4, 3, dtype=dtype), "b": torch.tensor(0.3, dtype=dtype)}
    with torch.device("meta"):
        rate = rate_as_input(0.1, spec)
    updates = [sgd(lr).update(grads, {}, grads, torch.zeros(()))[0] for lr in (0.1, rate)]
    for name, value in updates[0].items():
        assert value.dtype == updates[1][name].dtype == dtype
        assert torch.equal(value, updates[1][name])


def test_on_cuda_a_rate_is_the_number() -> None:
    spec = EpisodeSpec("regression", 1, 2, 2, (1,), 1, 1, device="cuda:0")
    assert rate_as_input(0.1, spec) == 0.1 and isinstance(rate_as_input(0.1, spec), float)
