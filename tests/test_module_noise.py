"""Noise of modules from outside: drawn from keys in training steps alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import gap
from test_from_module import KEY, episodes, examples, learner_of, network
from torch import Tensor, nn
from zoo import VECTOR
from zoo_networks import NOISY, ZOO

from metalearn.algorithms import ANIL, BOIL, MAML, ProtoNet, Reptile
from metalearn.errors import ConfigError
from metalearn.inner.recompute import checkpointing
from metalearn.learned_optimizers import LearnToOptimize
from metalearn.models import from_module
from metalearn.models.external.functions import DRAWS, Functions
from metalearn.noise import noise_from
from metalearn.rng import fold_in
from metalearn.transfer import FineTune
from metalearn.tree import stack, take, vmap
from metalearn.types import Batch

F64 = torch.float64


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_drawn_from_keys_in_training_steps_alone(name: str) -> None:
    exhibit = NOISY[name]
    learner = learner_of(exhibit, network(exhibit))
    assert learner.draws_noise
    params, x = learner.init(KEY), examples(exhibit, 4)
    keys = fold_in(KEY, torch.arange(3))

    def noisy(key: Tensor) -> Tensor:
        with noise_from(key):
            return learner.apply(params, x)

    still, state = learner.apply(params, x), torch.get_rng_state()
    alone = torch.stack([noisy(key) for key in keys])
    assert torch.equal(learner.apply(params, x), still)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(torch.func.vmap(noisy)(keys), alone, rtol=1e-10, atol=1e-10)
    assert torch.equal(noisy(keys[0]), alone[0])
    assert all((alone[a] - alone[b]).abs().max() > 1e-3 for a, b in ((0, 1), (1, 2)))
    assert (alone[0] - still).abs().max() > 1e-3
    assert not learner_of(exhibit, network(exhibit).eval()).draws_noise


@pytest.mark.parametrize(
    ("layer", "shape", "unbatched"),
    [
        (nn.Dropout(0.3), (200, 50), False),
        (nn.Dropout1d(0.3), (200, 50, 2), True),
        (nn.Dropout2d(0.3), (200, 50, 2, 2), True),
        (nn.Dropout3d(0.3), (200, 50, 2, 2, 2), True),
        (nn.AlphaDropout(0.3), (200, 50), False),
        (nn.FeatureAlphaDropout(0.3), (200, 50, 2), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_keyed_dropout_has_torchs_distribution(layer: Any, shape: Any, unbatched: bool) -> None:
    """Mean and deviation over 10,000 draws, and whole channels where torch drops them."""
    x = torch.ones(shape, dtype=F64)
    with noise_from(KEY), Functions(DRAWS):
        found = layer(x)
    torch.manual_seed(0)
    expected = layer(x)
    assert sorted(found.unique().tolist()) == pytest.approx(sorted(expected.unique().tolist()))
    assert abs(float(found.mean() - expected.mean())) < 0.03
    if unbatched:
        per_channel = found.flatten(2)
        assert (per_channel == per_channel[..., :1]).all()


def test_other_keyed_draws_have_torchs_distribution() -> None:
    shape, low = (300, 100), torch.linspace(0, 1, 100, dtype=F64)
    draws: dict[str, Any] = {
        "bernoulli": lambda: torch.bernoulli(low.expand(shape)).mean(0),
        "bernoulli_": lambda: torch.empty(shape, dtype=F64).bernoulli_(low).mean(0),
        "rand": lambda: torch.rand(shape, dtype=F64).sort(0).values.mean(1),
        "randn": lambda: torch.randn(*shape, dtype=F64).sort(0).values.mean(1),
        "uniform_": lambda: torch.empty(shape, dtype=F64).uniform_(2, 3).sort(0).values.mean(1),
        "normal_": lambda: torch.empty(shape, dtype=F64).normal_(2, 3).sort(0).values.mean(1),
    }
    torch.manual_seed(0)
    for name, draw in draws.items():
        with noise_from(KEY), Functions(DRAWS):
            found = draw()
        error = (found - draw()).abs() / (3 if name == "normal_" else 1)
        assert error.quantile(0.95) < 0.15, name


def test_training_steps_differ_by_their_noise_and_tests_do_not() -> None:
    exhibit = NOISY["dropout"]
    learner = learner_of(exhibit, exhibit.make())
    method = MAML(inner_steps=1, inner_lr=0.1).build(learner, exhibit.spec)
    meta, batch = method.init(KEY).meta, episodes(exhibit, 3, "noise")
    other = batch._replace(info={**batch.info, "key": batch.info["key"] + 1})
    assert method.task_grad is not None and method.learn is not None
    grads = [vmap(method.task_grad, (None, 0))(meta, given)[0] for given in (batch, other)]
    assert gap(*grads) > 1e-3
    alone = [method.task_grad(meta, take(batch, n))[0] for n in range(3)]
    assert gap(stack(alone), grads[0]) < 1e-10
    found = [method.learn(meta, batch.support, batch.query.x, (0, 2)).predictions for _ in range(2)]
    assert torch.equal(*found)
    with checkpointing():
        again = vmap(method.task_grad, (None, 0))(meta, batch)[0]
    assert gap(again, grads[0]) < 1e-10


def test_reptile_and_pretraining_draw_noise_too() -> None:
    exhibit = NOISY["dropout"]
    learner = learner_of(exhibit, exhibit.make())
    reptile = Reptile(inner_steps=2, inner_batch=None).build(learner, exhibit.spec)
    state, batch = reptile.init(KEY), episodes(exhibit, 2, "noise")
    other = batch._replace(info={**batch.info, "key": batch.info["key"] + 1})
    assert reptile.step is not None
    assert gap(reptile.step(state, batch)[0].meta, reptile.step(state, other)[0].meta) > 1e-6
    tuned = FineTune().build(learner, exhibit.spec)
    start = tuned.init(KEY)
    data = Batch(batch.support.x[0], batch.support.y[0])
    assert tuned.step is not None
    starts = [start._replace(step=torch.tensor(at, dtype=F64)) for at in (0.0, 0.0, 1.0)]
    losses = [tuned.step(at, data)[1] for at in starts]
    first, again, later = (float(loss["query_loss"]) for loss in losses)
    assert first == again != later


def test_a_method_without_keys_for_noise_refuses_it() -> None:
    exhibit = NOISY["dropout"]
    noisy, quiet = (learner_of(exhibit, exhibit.make().train(mode)) for mode in (True, False))
    with pytest.raises(ConfigError, match=r"learned_optimizer has no keys for it: use net\.eval"):
        LearnToOptimize().build(noisy, exhibit.spec)
    assert LearnToOptimize().build(quiet, exhibit.spec).step is not None


def test_methods_that_need_a_head_refuse_a_module_without_one() -> None:
    batch = episodes(ZOO["perceptron"], 2, "heads")

    def loss(component: Any, *layers: nn.Module, head: Any = "auto") -> Tensor:
        learner = from_module(nn.Sequential(*layers), VECTOR, head=head)
        method = component.build(learner, VECTOR)
        found: Tensor = method.step(method.init(KEY), batch)[1]["query_loss"]
        return found

    behind = (nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh())
    for component in (ANIL(), FineTune()):
        with pytest.raises(ConfigError, match="has layers after its head, which"):
            component.build(from_module(nn.Sequential(*behind), VECTOR), VECTOR)
        with pytest.raises(ConfigError, match=r"has no head, which .* needs: from_module"):
            component.build(from_module(nn.Sequential(*behind), VECTOR, head=None), VECTOR)
    assert loss(BOIL(), *behind).isfinite()
    embedding = (nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    assert loss(ProtoNet(), *embedding, head=None).isfinite()
    with pytest.raises(ConfigError, match="has 5 outputs, the task needs 3"):
        loss(MAML(), *embedding, head=None)
    assert loss(ANIL(), *embedding, head="new").isfinite()
    bare = (nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    assert loss(ANIL(), *bare).isfinite() and loss(MAML(), *bare).isfinite()
