"""Algorithms against closed forms and against plain loops written out by hand, all in float64.

Two problems: least squares, whose solution is known at every step, and a small classifier, whose
reference is a loop of `torch.autograd.grad` over `torch` alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from by_hand import (
    F64,
    QUERIES,
    SPEC,
    WAYS,
    by_hand,
    classifier,
    cross_entropy,
    episode_of,
    features,
    forward,
    normal,
    spec_of,
    stacked,
)
from torch import Tensor

from metalearn import rng
from metalearn.algorithms import ALGORITHMS, ANIL, BOIL, MAML, MetaSGD, ProtoNet, Reptile
from metalearn.errors import ConfigError
from metalearn.inner.rules import SGD
from metalearn.types import Batch, Episode, EpisodeSpec, Learner, Params

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
DIM = 4
OUTER = SGD(lr=0.7)  # a plain outer rule, so that a meta-update shows the meta-gradient itself


# least
# squares: closed forms With x [B, D] and y = x c the loss is |x (theta - c)|^2 / B = (theta - c)' H
# (theta - c) / 2 with H = 2 x' x / B.

LINE = EpisodeSpec("regression", 1, DIM, DIM, (DIM,), 1, 0, dtype=F64)


def line_learner() -> Learner:
    """apply(theta, x) = x theta; no head, no bias."""

    def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x @ params["theta"].unsqueeze(-1)

    return Learner(
        lambda key: {"theta": normal("theta", DIM)},
        apply,
        apply,
        lambda params, x: params,
        outputs=1,
    )


def line_task() -> tuple[Episode, Tensor, Tensor, Tensor, Tensor]:
    """An episode whose support and query have different solutions and Hessians; (episode, H_s, c_s,
    H_q, c_q)."""
    x_s, x_q = normal("xs", DIM, DIM), normal("xq", DIM + 1, DIM)
    c_s, c_q = normal("cs", DIM), normal("cq", DIM)
    episode = Episode(
        Batch(x_s, (x_s @ c_s).unsqueeze(-1)),
        Batch(x_q, (x_q @ c_q).unsqueeze(-1)),
        {"key": rng.fold_in(0, "task")},
    )
    return episode, 2 * x_s.T @ x_s / DIM, c_s, 2 * x_q.T @ x_q / (DIM + 1), c_q


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_on_least_squares(steps: int) -> None:
    """phi_S = c_s + (I - a H_s)^S (theta - c_s);  MAML: (I - a H_s)^S H_q (phi_S - c_q);  FOMAML:
    H_q (phi_S - c_q)."""
    episode, h_s, c_s, h_q, c_q = line_task()
    theta = normal("theta", DIM)
    pull = torch.linalg.matrix_power(torch.eye(DIM, dtype=F64) - 0.1 * h_s, steps)
    phi = c_s + pull @ (theta - c_s)
    for first_order, expected in ((True, h_q @ (phi - c_q)), (False, pull.T @ h_q @ (phi - c_q))):
        method = MAML(inner_steps=steps, inner_lr=0.1, first_order=first_order).build(
            line_learner(), LINE
        )
        assert method.task_grad is not None
        grads, metrics = method.task_grad({"theta": theta}, episode)
        torch.testing.assert_close(grads["theta"], expected, **CLOSE)
        torch.testing.assert_close(
            metrics["query_loss"], (phi - c_q) @ h_q @ (phi - c_q) / 2, **CLOSE
        )
    predictions = method.learn(
        {"theta": theta}, stacked([episode]).support, episode.query.x[None], (0, steps)
    ).predictions
    torch.testing.assert_close(
        predictions[0, :, :, 0],
        torch.stack([episode.query.x @ theta, episode.query.x @ phi]),
        **CLOSE,
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_sgd_on_least_squares(steps: int) -> None:
    """phi_S = c_s + (I - R H_s)^S (theta - c_s), which is not symmetric; for one step dL/dr = -g_s
    * g_q(phi)."""
    episode, h_s, c_s, h_q, c_q = line_task()
    # of both signs: nothing is clamped
    theta, rates = (normal("theta", DIM), 0.1 * normal("rates", DIM))
    pull = torch.linalg.matrix_power(torch.eye(DIM, dtype=F64) - rates.diag() @ h_s, steps)
    phi = c_s + pull @ (theta - c_s)
    method = MetaSGD(inner_steps=steps).build(line_learner(), LINE)
    assert method.task_grad is not None and rates.min() < 0 < rates.max()
    grads, _ = method.task_grad({"params": {"theta": theta}, "rates": {"theta": rates}}, episode)
    torch.testing.assert_close(grads["params"]["theta"], pull.T @ h_q @ (phi - c_q), **CLOSE)
    if steps == 1:
        by_hand = -(h_s @ (theta - c_s)) * (h_q @ (phi - c_q))
        torch.testing.assert_close(grads["rates"]["theta"], by_hand, **CLOSE)


# a small
# classifier: loops by hand

MOVES: dict[str, Callable[[str], bool]] = {
    "maml": lambda name: True,
    "fomaml": lambda name: True,
    "anil": lambda name: name.startswith("head."),
    "boil": lambda name: not name.startswith("head."),
}
METHODS = {
    "maml": MAML(inner_steps=2, inner_lr=0.4, outer=OUTER),
    "fomaml": MAML(inner_steps=2, inner_lr=0.4, first_order=True, outer=OUTER),
    "anil": ANIL(inner_steps=2, inner_lr=0.4, outer=OUTER),
    "boil": BOIL(inner_steps=2, inner_lr=0.4, outer=OUTER),
}


@pytest.mark.parametrize("label", METHODS)
def test_meta_gradients_equal_a_loop_by_hand(label: str) -> None:
    """`task_grad` of each task, and `step`'s update by their mean."""
    method = METHODS[label].build(classifier(), SPEC)
    state = method.init(rng.fold_in(0, "init"))
    rates = {name: torch.full_like(value, 0.4) for name, value in state.meta.items()}
    episodes = [episode_of(name) for name in "abc"]
    expected = [
        by_hand(state.meta, e, 2, MOVES[label], rates, label == "fomaml")[0] for e in episodes
    ]
    assert method.task_grad is not None and method.step is not None
    for episode, grads in zip(episodes, expected):
        found, _ = method.task_grad(state.meta, episode)
        torch.testing.assert_close(found, grads, **CLOSE)
        # every leaf is learned: body, head, biases
        assert min(g.abs().max() for g in grads.values()) > 1e-3
    after, _ = method.step(state, stacked(episodes))
    for name, value in state.meta.items():
        mean = sum(grads[name] for grads in expected) / 3
        torch.testing.assert_close(after.meta[name], value - 0.7 * mean, **CLOSE)


@pytest.mark.parametrize("label", ["anil", "boil"])
def test_the_inner_loop_moves_its_part_alone(label: str) -> None:
    """Predictions on a new task after s steps are those of a written-out loop over head or body."""
    method = METHODS[label].build(classifier(), SPEC)
    meta, episode = method.init(rng.fold_in(0, "init")).meta, episode_of("new")
    expected, now = [forward(meta, episode.query.x)], dict(meta)
    for _ in range(3):
        leaves = {
            name: value.clone().requires_grad_(MOVES[label](name)) for name, value in now.items()
        }
        cross_entropy(leaves, episode.support).backward()
        now = {
            n: (v - 0.4 * v.grad).detach() if v.grad is not None else v for n, v in leaves.items()
        }
        expected.append(forward(now, episode.query.x))
    predictions = method.learn(
        meta, stacked([episode]).support, episode.query.x[None], 3
    ).predictions[0]
    torch.testing.assert_close(predictions, torch.stack(expected), **CLOSE)


def test_meta_sgd_equals_a_loop_by_hand() -> None:
    """Both halves of the meta-gradient, two steps, a rate of its own for every parameter."""
    method = MetaSGD(inner_steps=2, outer=OUTER).build(classifier(), SPEC)
    params = method.init(rng.fold_in(0, "init")).meta["params"]
    rates = {name: 0.3 * normal(f"rate {name}", *value.shape) for name, value in params.items()}
    episode = episode_of("a")
    assert method.task_grad is not None
    found, _ = method.task_grad({"params": params, "rates": rates}, episode)
    for_params, for_rates = by_hand(params, episode, 2, MOVES["maml"], rates)
    torch.testing.assert_close(found["params"], for_params, **CLOSE)
    torch.testing.assert_close(found["rates"], for_rates, **CLOSE)


def test_meta_sgd_starts_with_one_common_rate() -> None:
    """One value for all, in the range, from the key; and the outer rule moves parameters and
    rates."""
    method = MetaSGD(outer=OUTER).build(classifier(), SPEC)
    seen = set()
    for seed in range(20):
        rates = method.init(rng.fold_in(seed, "init")).meta["rates"]
        values = torch.cat([rate.flatten() for rate in rates.values()])
        assert values.unique().numel() == 1 and 0.005 <= values[0] < 0.1
        seen.add(values[0].item())
    assert len(seen) == 20
    state = method.init(rng.fold_in(0, "init"))
    assert method.step is not None
    after, _ = method.step(state, stacked([episode_of("a"), episode_of("b")]))
    for half in ("params", "rates"):
        assert all(
            (after.meta[half][name] != value).any() for name, value in state.meta[half].items()
        )


def test_gradcheck_of_the_whole_two_step_loss() -> None:
    """The meta-gradient is the slope of the query loss after two steps, by finite differences in
    every direction."""
    method = METHODS["maml"].build(classifier(), SPEC)
    meta, episode = method.init(rng.fold_in(0, "init")).meta, episode_of("a")
    rates = {name: torch.full_like(value, 0.4) for name, value in meta.items()}
    assert method.task_grad is not None
    found, _ = method.task_grad(meta, episode)

    def loss(*leaves: Tensor) -> Tensor:
        task_grad = method.task_grad
        assert task_grad is not None
        return task_grad(dict(zip(meta, leaves)), episode)[1]["query_loss"]

    for name in meta:
        numeric = torch.zeros_like(meta[name])
        for place in range(numeric.numel()):
            ends = []
            for sign in (1, -1):
                moved = {n: v.clone() for n, v in meta.items()}
                moved[name].view(-1)[place] += sign * 1e-5
                ends.append(loss(*moved.values()))
            numeric.view(-1)[place] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(found[name], numeric, rtol=1e-6, atol=1e-9)
    first, _ = by_hand(meta, episode, 2, MOVES["maml"], rates, first_order=True)
    gap = sum((found[n] - first[n]).square().sum() for n in meta) ** 0.5
    size = sum(found[n].square().sum() for n in meta) ** 0.5
    # the second-order term is there and is no rounding (trap: MAML that is FOMAML)
    assert gap / size > 0.1


#
# prototypical networks


def test_proto_net_equals_the_formula() -> None:
    """Loss, gradient, predictions; the head is unused, with gradient zero."""
    method = ProtoNet(outer=OUTER).build(classifier(), SPEC)
    meta, episode = method.init(rng.fold_in(0, "init")).meta, episode_of("a")
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    z_s, z_q = features(leaves, episode.support.x), features(leaves, episode.query.x)
    means = [z_s[episode.support.y == n].mean(0) for n in range(WAYS)]
    logits = torch.stack([-((z_q - mean) ** 2).sum(1) for mean in means], 1)
    loss = torch.nn.functional.cross_entropy(logits, episode.query.y)
    body = [name for name in meta if not name.startswith("head.")]
    expected = dict(zip(body, torch.autograd.grad(loss, [leaves[name] for name in body])))
    assert method.task_grad is not None
    grads, metrics = method.task_grad(meta, episode)
    torch.testing.assert_close({name: grads[name] for name in body}, expected, **CLOSE)
    torch.testing.assert_close(metrics["query_loss"], loss.detach(), **CLOSE)
    assert all((grads[name] == 0).all() for name in meta if name not in body)
    predictions = method.learn(
        meta, stacked([episode]).support, episode.query.x[None], (0, 1, 5)
    ).predictions
    assert predictions.shape == (1, 3, WAYS * QUERIES, WAYS)
    torch.testing.assert_close(predictions[0], logits.detach().expand(3, -1, -1), **CLOSE)
    assert not method.traits.uses_steps and method.traits.support_at_step_0


def test_proto_net_of_other_ways_takes_the_same_meta() -> None:
    """Trained with 6 ways, used with 3."""
    many = ProtoNet(outer=OUTER).build(classifier(6), spec_of(6))
    assert many.step is not None
    state, _ = many.step(
        many.init(rng.fold_in(0, "init")),
        stacked([episode_of("m", ways=6), episode_of("n", ways=6)]),
    )
    few, episode = ProtoNet().build(classifier(), SPEC), episode_of("a")
    predictions = few.learn(
        state.meta, stacked([episode]).support, episode.query.x[None], (0,)
    ).predictions[0, 0]
    z = features(state.meta, episode.query.x)
    mean = features(state.meta, episode.support.x[episode.support.y == 1]).mean(0)
    assert predictions.shape == (WAYS * QUERIES, WAYS) and predictions.isfinite().all()
    torch.testing.assert_close(predictions[:, 1], -((z - mean) ** 2).sum(1), **CLOSE)


# what is refused


def test_tasks_without_queries_serve_reptile_alone() -> None:
    """Every other method names the field; Reptile takes a step."""
    spec = spec_of(WAYS, queries=0)
    for name in sorted(set(ALGORITHMS) - {"reptile"}):
        with pytest.raises(ConfigError) as caught:
            ALGORITHMS[name]().build(classifier(), spec)  # type: ignore[attr-defined]
        assert caught.value.problems[0][0] == "task.queries"
    method = Reptile().build(classifier(), spec)
    assert method.step is not None
    state, metrics = method.step(
        method.init(rng.fold_in(0, "init")), stacked([episode_of("a", queries=0)] * 2)
    )
    assert metrics["support_loss"].isfinite()
    assert all(v.isfinite().all() for v in state.meta.values())


def test_proto_net_refuses_regression() -> None:
    with pytest.raises(ConfigError, match="classification"):
        ProtoNet().build(line_learner(), LINE)


def test_the_table_holds_each_name() -> None:
    """A component's key is its name; fields that act only on new tasks are known for cheap
    tuning."""
    first = ["maml", "anil", "boil", "reptile", "meta_sgd", "proto_net"]
    assert list(ALGORITHMS)[: len(first)] == first
    assert all(part().name == name for name, part in ALGORITHMS.items())  # type: ignore[attr-defined]
    assert Reptile.fields_at_adapt() == {"adapt_batch"}
    with pytest.raises(ValueError, match="rate_range"):
        MetaSGD(rate_range=(0.2, 0.1))
