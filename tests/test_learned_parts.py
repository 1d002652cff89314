"""Parts of learned rules: cells against torch.nn, features, factored moments, mixing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.learned_optimizers import (
    LEARNED_RULES,
    LSTM,
    Hyper,
    LearnedRates,
    LearnedRule,
    Theta,
)
from metalearn.learned_optimizers.rules.adafactor_mlp import columns, largest_axes, moments, start
from metalearn.learned_optimizers.rules.cells import init_lstm, init_mlp, lstm, mlp, zero_memory
from metalearn.learned_optimizers.rules.features import divide_by_rms, log_sign, time_features
from metalearn.rng import fold_in, normal
from metalearn.tree import norm, sub

F64 = torch.float64


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    return normal(fold_in(3, name), shape, F64)


PARAMS = {name: drawn(name, shape) for name, shape in {"w": (4, 3), "b": (4,), "s": ()}.items()}


def test_rates_need_the_network_that_they_are_for() -> None:
    with pytest.raises(ConfigError, match="like"):
        LearnedRates().build(F64)
    made = LearnedRates(lr=0.1).build(F64, like={**PARAMS, "stats.mean": PARAMS["b"]})
    theta = made.init(fold_in(0))
    expected = {leaf: v.shape for leaf, v in PARAMS.items()}
    assert {leaf: value.shape for leaf, value in theta.items()} == expected
    theta["w"][0, 0] = -0.3  # a rate may turn negative
    updates, _ = made.rule(theta, 1).update(
        PARAMS, made.rule(theta, 1).init(PARAMS), PARAMS, PARAMS["s"]
    )
    torch.testing.assert_close(updates["w"][0, 0], 0.2 * PARAMS["w"][0, 0])
    torch.testing.assert_close(updates["b"], -0.1 * PARAMS["b"])


def test_the_lstm_is_torchs() -> None:
    """nn.LSTM orders its gates i, f, g, o and has two biases."""
    theta = init_lstm(fold_in(0), 2, 5, 2, F64)
    theta = {name: value + 0.1 * drawn(name, tuple(value.shape)) for name, value in theta.items()}
    theirs = nn.LSTM(2, 5, 2, dtype=F64)
    for layer in range(2):
        i, f, o, g = theta[f"lstm.{layer}.weight"].chunk(4)
        matrix = torch.cat([i, f, g, o])
        i, f, o, g = theta[f"lstm.{layer}.bias"].chunk(4)
        inputs = matrix.shape[1] - 5
        values = {
            "weight_ih": matrix[:, :inputs],
            "weight_hh": matrix[:, inputs:],
            "bias_ih": torch.cat([i, f, g, o]),
        }
        for part, value in {**values, "bias_hh": torch.zeros(20, dtype=F64)}.items():
            getattr(theirs, f"{part}_l{layer}").data = value
    x = drawn("sequence", (4, 7, 2))  # [steps, coordinates, inputs]
    memory, outputs = zero_memory(x, 7, 5, 2), []
    for step in range(4):
        h, memory = lstm(theta, x[step], memory)
        outputs.append(h)
    torch.testing.assert_close(torch.stack(outputs), theirs(x)[0].detach(), rtol=1e-12, atol=1e-14)


def test_an_lstm_starts_with_open_forget_gates() -> None:
    bias = init_lstm(fold_in(0), 2, 3, 1, F64)["lstm.0.bias"]
    assert bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


@pytest.mark.parametrize("preprocess", [None, 5.0])
def test_an_lstm_sees_one_coordinate_at_a_time(preprocess: float | None) -> None:
    """Coordinates in another order, split over other tensors: the same updates."""
    made = LSTM(hidden=4, preprocess=preprocess).build(F64)
    theta = made.init(fold_in(0))
    whole, grads = {"a": drawn("a", (6,))}, [drawn(f"g{step}", (6,)) for step in range(3)]
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    parts = {"p": whole["a"][order][:2], "q": whole["a"][order][2:].reshape(2, 2)}
    rule = made.rule(theta, 3)
    one, two = rule.init(whole), rule.init(parts)
    for grad in grads:
        turned = grad[order]
        mine, one = rule.update({"a": grad}, one, whole, grad[0])
        other, two = rule.update(
            {"p": turned[:2], "q": turned[2:].reshape(2, 2)}, two, parts, grad[0]
        )
        torch.testing.assert_close(mine["a"][order], torch.cat([other["p"], other["q"].flatten()]))


def test_log_sign_features() -> None:
    """Both pieces of the definition, their joint at e^-p, and a slope that stays finite at 0."""
    p = 10.0
    grad = torch.tensor([1.0, -math.exp(2.0), math.exp(-p), -math.exp(-p), 1e-6, 0.0], dtype=F64)
    first, second = log_sign(grad, p).unbind(-1)
    torch.testing.assert_close(first, torch.tensor([0.0, 0.2, -1.0, -1.0, -1.0, -1.0], dtype=F64))
    near = [1.0, -1.0, 1.0, -1.0, 1e-6 * math.exp(p), 0.0]
    torch.testing.assert_close(second, torch.tensor(near, dtype=F64))
    slopes = torch.func.jacrev(lambda g: log_sign(g, p))(grad)
    assert slopes.isfinite().all()


def test_time_features() -> None:
    found = time_features(torch.tensor(100.0, dtype=F64))
    assert found.shape == (11,)
    assert found[4] == 0
    assert found[0] == pytest.approx(math.tanh(99))
    assert found[-1] == pytest.approx(math.tanh(-0.999))


def test_features_have_unit_size() -> None:
    table = divide_by_rms([1e3 * drawn("a", (5, 4)), drawn("b", (5, 4))])
    assert table.shape == (20, 2)
    torch.testing.assert_close(table.square().mean(0), torch.ones(2, dtype=F64), rtol=1e-4, atol=0)
    assert divide_by_rms([drawn("c", ())]).shape == (1, 1)


def test_a_perceptron_multiplies_what_is_shared_once() -> None:
    theta = init_mlp(fold_in(0), (5, 4, 2), F64)
    x, shared = drawn("x", (7, 3)), drawn("shared", (2,))
    wide = torch.cat([x, shared.expand(7, 2)], -1)
    plain = (wide @ theta["mlp.0.weight"].T).relu() @ theta["mlp.1.weight"].T
    torch.testing.assert_close(mlp(theta, x, shared, 2), plain)


@pytest.mark.parametrize(("name", "features"), [("mlp", 19), ("adafactor_mlp", 39)])
def test_the_number_of_features_is_the_papers(name: str, features: int) -> None:
    theta = LEARNED_RULES[name]().build(F64).init(fold_in(0))  # type: ignore[attr-defined]
    assert theta["mlp.0.weight"].shape[1] == features
    widths = {"mlp": (32, 2), "adafactor_mlp": (4, 2)}[name]
    assert [theta[f"mlp.{layer}.weight"].shape[0] for layer in range(3)] == [widths[0]] * 2 + [2]


def test_moments_are_factored_over_the_two_largest_dimensions() -> None:
    """Where the squared gradient is a product of rows and columns, factoring loses nothing."""
    assert largest_axes(torch.Size((5, 3, 7, 2))) == (0, 2)
    assert largest_axes(torch.Size((4,))) is None
    rows, cols = drawn("rows", (5, 1)).abs() + 0.1, drawn("cols", (1, 7)).abs() + 0.1
    grad = (rows * cols).unsqueeze(1) * drawn("sign", (5, 1, 7)).sign()
    theta = LEARNED_RULES["adafactor_mlp"]().build(F64).init(fold_in(0))  # type: ignore[attr-defined]
    slots = moments(theta, grad, start(grad))
    assert slots["rows"].shape == (3, 5, 1, 1) and slots["cols"].shape == (3, 1, 1, 7)
    found = columns(grad, PARAMS["s"].expand(grad.shape), slots)
    assert len(found) == 28 and {column.shape for column in found} == {grad.shape}
    for decay, column in zip(
        (0.9, 0.99, 0.999), found[10:13], strict=True
    ):  # g by the factored root: its sign
        torch.testing.assert_close(column * (1 - decay) ** 0.5, grad.sign(), rtol=1e-3, atol=1e-4)


def test_decays_of_the_adafactor_rule_are_learned_as_logarithms() -> None:
    theta = LEARNED_RULES["adafactor_mlp"]().build(F64).init(fold_in(0))  # type: ignore[attr-defined]
    momenta = moments(theta, PARAMS["b"], start(PARAMS["b"]))["momenta"]
    torch.testing.assert_close(
        momenta / PARAMS["b"], torch.tensor([0.1, 0.01, 0.001], dtype=F64)[:, None].expand(3, 4)
    )


def test_a_hyper_network_mixes_its_bank() -> None:
    """Mixing weights have an effect with two perceptrons, none with one; the loss has one."""
    for bank in (1, 2):
        made = Hyper(bank=bank).build(F64)
        theta = made.init(fold_in(0))
        theta = {
            name: value + 0.1 * normal(fold_in(1, name), value.shape, F64)
            for name, value in theta.items()
        }

        def size(theta: Theta, made: LearnedRule = made) -> Tensor:
            rule = made.rule(theta, 9)
            return norm(rule.update(PARAMS, rule.init(PARAMS), PARAMS, PARAMS["s"])[0])

        grads = torch.func.grad(size)(theta)
        assert bool(norm(grads["mix.weight"]) > 0) == (bank == 2)
        assert norm(grads["bank.0.weight"]) > 0
    rule = made.rule(theta, 9)
    _, state = rule.update(PARAMS, rule.init(PARAMS), PARAMS, torch.tensor(1.0, dtype=F64))
    low, high = (
        rule.update(PARAMS, state, PARAMS, torch.tensor(v, dtype=F64))[0] for v in (0.5, 2.0)
    )
    assert norm(sub(low, high)) > 0
