"""A learned rule as a torch.optim.Optimizer on anybody's module."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from messages import collect_messages
from torch import Tensor, nn

from metalearn import LearnedOptimizer
from metalearn.component import Component
from metalearn.errors import ConfigError
from metalearn.learned_optimizers import (
    LEARNED_RULES,
    LSTM,
    Constant,
    Hyper,
    LearnedAdam,
    LearnedRates,
    LearnedSGD,
    LearnOptimizer,
    LearnToOptimize,
)
from metalearn.learned_optimizers.inner_run import clip_or_zero
from metalearn.rng import fold_in, normal
from metalearn.run.trained import learned_optimizer

F64 = torch.float64
X, Y = normal(fold_in(0, "x"), (12, 3), F64), normal(fold_in(0, "y"), (12, 2), F64)


def module() -> nn.Module:
    """Anybody's network, always with the same start; its second bias has no use."""
    made = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    for name, param in made.named_parameters():
        param.data = 0.5 * normal(fold_in(1, name), param.shape, F64)
    return made


def theta_of(rule: Component, like: nn.Module | None = None) -> dict[str, Tensor]:
    named = dict((like or module()).named_parameters())
    theta: dict[str, Tensor] = rule.build(F64, like=named).init(fold_in(0, "theta"))  # type: ignore[attr-defined]
    return theta


def optimizer_of(rule: Component, network: nn.Module, num_steps: int = 9) -> LearnedOptimizer:
    return LearnedOptimizer(network.named_parameters(), rule, theta_of(rule), num_steps)


def train(network: nn.Module, optimizer: Any, steps: int) -> list[float]:
    """Steps with a closure; the losses that they return."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (network(X) - Y).square().mean()
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


#
# on anybody's module


def test_learned_adam_that_has_learned_nothing_trains_as_torchs() -> None:
    ours, theirs = module(), module()
    mine = train(ours, optimizer_of(LearnedAdam(lr=0.05), ours), 6)
    assert mine == pytest.approx(
        train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.05), 6), rel=1e-12
    )
    assert mine[-1] < mine[0]


@pytest.mark.parametrize("name", LEARNED_RULES)
def test_it_walks_the_path_of_the_pure_rule(name: str) -> None:
    """The same points as a loop of the pure pair, with loss and horizon."""
    rule, network = LEARNED_RULES[name](), module()
    theta = {
        leaf: value + 0.05 * normal(fold_in(2, leaf), value.shape, F64)
        for leaf, value in theta_of(rule).items()
    }
    optimizer = LearnedOptimizer(network.named_parameters(), rule, theta, 9)
    now = {leaf: value.detach().clone() for leaf, value in network.named_parameters()}
    pair = rule.build(F64, like=now).rule(theta, 9)  # type: ignore[attr-defined]
    state = pair.init(now)
    for _ in range(3):
        grads, value = torch.func.grad_and_value(
            lambda p: (torch.func.functional_call(network, p, (X,)) - Y).square().mean()
        )(now)
        updates, state = pair.update(grads, state, now, value)
        now = {leaf: now[leaf] + updates[leaf] for leaf in now}
    train(network, optimizer, 3)
    torch.testing.assert_close(dict(network.named_parameters()), now, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "rule", [LSTM(hidden=4), Hyper(hidden=4), LearnedAdam()], ids=lambda rule: rule.name
)
def test_a_state_dict_goes_on_where_it_was_taken(rule: Component, tmp_path: Path) -> None:
    """Three steps, saved and loaded without pickled code, three more: bit for bit those of six."""
    straight, stopped = module(), module()
    train(straight, optimizer_of(rule, straight), 6)
    optimizer = optimizer_of(rule, stopped)
    train(stopped, optimizer, 3)
    torch.save(
        {"model": stopped.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt"
    )
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    again = module()
    again.load_state_dict(stored["model"])
    fresh = optimizer_of(rule, again, num_steps=2)
    fresh.load_state_dict(stored["optimizer"])
    assert fresh.param_groups[0]["num_steps"] == 9  # the horizon that it began with
    train(again, fresh, 3)
    assert same(again, straight)
    cold = module()
    cold.load_state_dict(stored["model"])
    train(cold, optimizer_of(rule, cold), 3)
    assert not same(cold, straight)  # the state has a say


def test_a_file_holds_rule_and_theta(tmp_path: Path) -> None:
    rule, one, two = LSTM(hidden=3, scale=0.5), module(), module()
    optimizer = optimizer_of(rule, one)
    optimizer.save(tmp_path / "lstm.pt")
    assert set(torch.load(tmp_path / "lstm.pt", weights_only=True)) == {"rule", "theta"}
    loaded = LearnedOptimizer.load(tmp_path / "lstm.pt", two.parameters(), num_steps=9)
    assert loaded.rule == rule and type(loaded) is LearnedOptimizer
    train(one, optimizer, 2)
    train(two, loaded, 2)
    assert same(one, two)


def test_float32_networks_take_a_theta_of_any_precision(tmp_path: Path) -> None:
    optimizer_of(LearnedAdam(lr=0.05), module()).save(tmp_path / "adam.pt")
    network = module().float()
    optimizer = LearnedOptimizer.load(tmp_path / "adam.pt", network.parameters(), num_steps=3)
    loss = network(X.float()).square().mean()
    loss.backward()
    assert optimizer.step(loss=loss) is loss
    assert {param.dtype for param in network.parameters()} == {torch.float32}
    stored = optimizer.state_dict()["state"][0]["rule"]
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_several_groups_are_one_to_the_rule() -> None:
    one, two, rule = module(), module(), Hyper(hidden=4)
    train(one, optimizer_of(rule, one), 3)
    groups = [{"params": list(part.named_parameters())} for part in (two[0], two[2])]  # type: ignore[index]
    named = [
        {"params": [(f"{place}.{name}", p) for name, p in group["params"]]}
        for place, group in enumerate(groups)
    ]
    train(two, LearnedOptimizer(named, rule, theta_of(rule), 9), 3)
    assert same(one, two)


def test_a_parameter_without_a_gradient_stays() -> None:
    network = module()
    network[2].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    train(network, optimizer_of(LSTM(hidden=3), network), 2)
    moved = {
        name for name, value in network.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == set(before) - {"2.bias"}


def test_schedulers_set_a_factor_on_the_updates() -> None:
    """By hand: each update of a rule without state times the factor of its step."""
    network, other = module(), module()
    optimizer = optimizer_of(LearnedSGD(lr=0.1), network)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    for step in range(3):
        plain.param_groups[0]["lr"] = 0.1 * 0.5**step
        train(network, optimizer, 1)
        train(other, plain, 1)
        scheduler.step()
    torch.testing.assert_close(
        dict(network.named_parameters()), dict(other.named_parameters()), rtol=1e-12, atol=1e-14
    )
    fresh = optimizer_of(LearnedSGD(lr=0.1), module())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["lr"] == 0.125
    old = optimizer.state_dict()
    for name in ("lr", "weight_decay"):
        del old["param_groups"][0][name]  # as older versions wrote it
    fresh.load_state_dict(old)
    assert fresh.param_groups[0]["lr"] == 1
    group = {"params": module().parameters(), "lr": np.float32(0.5), "weight_decay": np.int64(0)}
    made = LearnedOptimizer([group], LearnedSGD(lr=0.1), theta_of(LearnedSGD()), 9)
    assert made.param_groups[0]["lr"] == 0.5


def test_groups_have_factors_and_weight_decay() -> None:
    """Against AdamW, whose decay is decoupled too, by groups."""
    ours, theirs = module(), module()

    def groups(network: Any, lr: tuple[float, float], decay: float) -> list[dict[str, Any]]:
        first, second = ({"params": list(network[place].parameters())} for place in (0, 2))
        return [{**first, "lr": lr[0], "weight_decay": decay}, {**second, "lr": lr[1]}]

    rule = LearnedAdam(lr=0.05)
    mine = LearnedOptimizer(groups(ours, (1.0, 0.2), 0.01), rule, theta_of(rule), 9)
    # AdamW takes lr * decay of a parameter: 0.05 * 0.2 is our 1 * 0.01
    plain = torch.optim.AdamW(groups(theirs, (0.05, 0.01), 0.2), weight_decay=0.0)
    train(ours, mine, 4)
    train(theirs, plain, 4)
    torch.testing.assert_close(
        dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=1e-10, atol=1e-12
    )


def test_frozen_and_half_parameters_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    network, alone = module(), module()
    still = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    half = nn.Parameter(torch.ones(2, dtype=torch.float16))
    frozen = nn.Parameter(torch.ones(2, dtype=F64), requires_grad=False)
    frozen.grad, half.grad = torch.ones(2, dtype=F64), torch.ones(2, dtype=torch.float16)
    named = [("still", still), ("half", half), *network.named_parameters(), ("frozen", frozen)]
    optimizer = LearnedOptimizer(named, LearnedAdam(lr=0.05), theta_of(LearnedAdam()), 9)
    assert "half precision are not updated: half" in caplog.text
    optimizer.zero_grad = network.zero_grad  # type: ignore[method-assign]
    train(network, optimizer, 3)
    train(alone, optimizer_of(LearnedAdam(lr=0.05), alone), 3)
    assert same(network, alone)
    assert all((value == 1).all() for value in (still, half, frozen))


def made(params: Any, rule: Any = None, theta: Any = None) -> LearnedOptimizer:
    """The optimizer of these parameters, by default with a learned rate, for 9 steps."""
    rule = rule or LearnedSGD()
    return LearnedOptimizer(params, rule, theta or theta_of(rule), 9)


MORE = {"params": [torch.ones(2)]}
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "steps_zero": (lambda: optimizer_of(LearnedSGD(), module(), 0), "num_steps"),
    "steps_part": (lambda: optimizer_of(LearnedSGD(), module(), 2.5), "num_steps"),  # type: ignore[arg-type]
    "own_options": (
        lambda: made([{"params": module().parameters(), "eps": 1.0}]),
        "eps: a learned rule has no such options",
    ),
    "negative_factor": (
        lambda: made([{"params": module().parameters(), "lr": -1.0}]),
        "lr: must be >= 0",
    ),
    "group_later": (lambda: made(module().parameters()).add_param_group(MORE), "once"),
    "half": (lambda: made(module().half().parameters()), "float16"),
    "mixed": (
        lambda: made([*module().parameters(), *module().float().parameters()]),
        "float32",
    ),
    "other_theta": (
        lambda: made(module().parameters(), LSTM(hidden=3), theta_of(LSTM(hidden=4))),
        "lstm.0.weight",
    ),
    "other_network": (lambda: made(module().parameters(), LearnedRates()), "learned_rates"),
    "factor_of_text": (lambda: made([{"params": module().parameters(), "lr": "1"}]), "lr: must be"),
    "loss_as_closure": (
        lambda: made(module().parameters()).step(torch.ones(())),
        r"Tensor instead of a closure: use step\(loss=loss\)",
    ),
    "losses": (
        lambda: made(module().parameters()).step(loss=torch.ones(3)),
        r"loss: must be a scalar \(got shape \[3\]\)",
    ),
    "no_number": (lambda: made(module().parameters()).step(loss="x"), "loss: must be a number"),
    "no_loss": (lambda: optimizer_of(Hyper(hidden=3), module()).step(), "needs the loss"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_refused_with_a_sentence(case: str) -> None:
    make, word = BAD[case]
    with pytest.raises(ConfigError, match=word):
        make()


def test_sparse_gradients_are_refused() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    optimizer = LearnedOptimizer(
        layer.parameters(), LearnedSGD(), LearnedSGD().build().init(fold_in(0)), 3
    )
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize("content", [b"", b"nonsense", "tensors", "rule", "list"])
def test_files_that_hold_no_optimizer_are_refused(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    made: dict[str, Any] = {
        "tensors": {"a": torch.ones(2)},
        "rule": {"rule": json.dumps({"name": "lstmm"}), "theta": {"a": torch.ones(2)}},
        "list": [1, 2],
    }
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(made[content], path)
    with pytest.raises(ConfigError, match=r"file\.pt"):
        LearnedOptimizer.load(path, module().parameters(), num_steps=3)
    with pytest.raises(ConfigError, match=r"nowhere"):
        LearnedOptimizer.load(tmp_path / "nowhere", module().parameters(), num_steps=3)


def test_a_copy_of_network_and_optimizer_goes_on_as_they_do() -> None:
    network = module()
    optimizer = optimizer_of(LSTM(hidden=4, layers=1), network)
    train(network, optimizer, 3)
    twin, copied = copy.deepcopy((network, optimizer))
    assert train(twin, copied, 3) == train(network, optimizer, 3) and same(network, twin)


def test_the_state_is_initialized_once() -> None:
    """Each time would cost launches for every parameter."""
    optimizer, calls = optimizer_of(LSTM(hidden=4), network := module()), list[None]()
    learned = optimizer._learned

    def rule(*args: Any) -> Any:
        made = learned.rule(*args)
        return made._replace(init=lambda params: calls.append(None) or made.init(params))

    optimizer._learned = learned._replace(rule=rule)
    train(network, optimizer, 3)
    assert len(calls) == 1
    optimizer.load_state_dict(optimizer.state_dict())
    train(network, optimizer, 1)
    assert len(calls) == 1


def test_the_state_of_another_optimizer_is_refused_where_it_is_loaded() -> None:
    network = module()
    state = torch.optim.Adam(network.parameters()).state_dict()
    with pytest.raises(ConfigError, match="another optimizer"):
        optimizer_of(LearnedSGD(), network).load_state_dict(state)


def test_an_outer_gradient_too_long_to_measure_counts_as_not_finite() -> None:
    large = {"a": torch.full((3,), 1e30), "b": torch.ones(2)}
    grads, metrics = clip_or_zero(large, clip=1.0)
    assert metrics["grad_not_finite"] == 1
    assert metrics["grad_norm"] == 0
    assert not any(grad.any() for grad in grads.values())
    grads, metrics = clip_or_zero({"a": torch.tensor([3.0, 4.0])}, clip=1.0)
    assert metrics["grad_norm"] == 5 and metrics["grad_not_finite"] == 0
    torch.testing.assert_close(grads["a"], torch.tensor([0.6, 0.8]))


def test_steps_beyond_those_that_were_announced_are_warned_of_once() -> None:
    network, messages = module(), collect_messages()
    optimizer = optimizer_of(LearnedSGD(), network, num_steps=2)
    train(network, optimizer, 2)
    assert messages == []
    again = optimizer_of(LearnedSGD(), network, num_steps=2)
    again.load_state_dict(optimizer.state_dict())
    train(network, again, 3)
    assert len(messages) == 1 and "step 3 of a learned optimizer" in messages[0], messages
    assert "num_steps=2" in messages[0]


@pytest.mark.parametrize(
    ("method", "options", "most"),
    [
        (LearnToOptimize, {"inner_steps": 7}, 7),
        (LearnOptimizer, {"unroll": 5, "horizon": Constant(steps=10)}, 10),
    ],
)
def test_more_steps_than_a_rule_was_learned_for_are_warned_of(
    method: Any, options: Any, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = LearnedSGD()
    run = SimpleNamespace(base_method=method(rule=rule, **options))
    monkeypatch.setattr(learned_optimizer, "load_rule", lambda path: (rule, theta_of(rule)))
    monkeypatch.setattr(learned_optimizer, "stored_experiment", lambda folder: run)
    messages = collect_messages()
    LearnedOptimizer.load(tmp_path, module().named_parameters(), num_steps=most)
    assert messages == []
    LearnedOptimizer.load(tmp_path, module().named_parameters(), num_steps=most + 1)
    (message,) = messages
    assert f"runs of at most {most} steps" in message and f"num_steps={most + 1}" in message
