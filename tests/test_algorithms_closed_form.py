"""Methods against an independent computation: heads from class means, attention, ridge regression,
transformed gradients and contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clusters import Clusters
from torch.nn import functional as F

from metalearn.algorithms import CAVIA, MAML, R2D2, MatchingNet, MetaCurvature, ProtoMAML, ProtoNet
from metalearn.component import MethodComponent
from metalearn.errors import ConfigError
from metalearn.evaluate import learning_curve
from metalearn.inner.rules import Adam
from metalearn.models.mlp import MLP
from metalearn.rng import fold_in, normal
from metalearn.tasks import Sinusoid
from metalearn.tree import take
from metalearn.types import Episode, Learner, Method

F64 = torch.float64
KEY = fold_in(0, "closed form")


def classes() -> tuple[Clusters, Learner]:
    source = Clusters("train", 24)
    return source, MLP(sizes=(8, 7), activation="tanh").build(source.spec)


def answer(method: Method, meta: object, episode: Episode, step: int = 0) -> torch.Tensor:
    assert method.adapt is not None and method.predict is not None
    item = method.adapt(meta, episode.support, step, KEY)
    return method.predict(meta, item, episode.support, episode.query.x)


def one_episode(source: object) -> Episode:
    return take(source.sample(KEY, 1), 0)  # type: ignore[attr-defined, no-any-return]


def test_proto_maml_starts_as_a_proto_net_up_to_a_constant_of_each_query() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method, proto = (c.build(learner, source.spec) for c in (ProtoMAML(), ProtoNet()))
    meta = method.init(KEY).meta
    start = answer(method, meta, episode)
    torch.testing.assert_close(start.softmax(-1), answer(proto, meta, episode).softmax(-1))
    assert method.traits.support_at_step_0 and not method.traits.fixed_ways


def test_proto_maml_is_maml_from_the_head_of_the_class_means() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method = ProtoMAML(inner_steps=3, inner_lr=0.1).build(learner, source.spec)
    meta = method.init(KEY).meta
    z = learner.features(meta, episode.support.x)
    centres = torch.stack([z[episode.support.y == n].mean(0) for n in range(source.spec.ways)])
    head = {"head.weight": 2 * centres, "head.bias": -(centres**2).sum(-1)}
    maml = MAML(inner_steps=3, inner_lr=0.1).build(learner, source.spec)
    expected = answer(maml, {**meta, **head}, episode, 3)
    torch.testing.assert_close(answer(method, meta, episode, 3), expected)


def test_matching_net_sums_the_attention_of_each_class() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method = MatchingNet(scale=3.0).build(learner, source.spec)
    meta = method.init(KEY).meta
    memory, z = (learner.features(meta, x) for x in (episode.support.x, episode.query.x))
    weight = (3.0 * F.cosine_similarity(z[:, None], memory[None], -1)).softmax(-1)
    expected = weight @ F.one_hot(episode.support.y, source.spec.ways).to(F64)
    torch.testing.assert_close(answer(method, meta, episode).exp(), expected)


@pytest.mark.parametrize("regression", [False, True])
def test_r2d2_solves_ridge_regression(regression: bool) -> None:
    """Against scikit-learn's solver in the other form, (Z'Z + lambda I)^-1 Z'Y."""
    from sklearn.linear_model import Ridge

    if regression:
        source = Sinusoid(shots=5).build(split="train", seed=0, dtype=F64)
        learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
    else:
        source, learner = classes()
    episode = one_episode(source)
    method = R2D2(ridge=0.3, scale=2.0).build(learner, source.spec)
    meta = method.init(KEY).meta
    assert ("offset" in meta) == regression
    z, new = (
        learner.features(meta["params"], b.x).numpy() for b in (episode.support, episode.query)
    )
    y = episode.support.y.numpy() if regression else np.eye(source.spec.ways)[episode.support.y]
    fitted = Ridge(alpha=0.3, fit_intercept=False).fit(z, y)
    expected = 2.0 * fitted.predict(new).reshape(len(new), -1)
    np.testing.assert_allclose(
        answer(method, meta, episode).numpy(), expected, rtol=1e-8, atol=1e-9
    )


def test_meta_curvature_at_the_identity_is_maml() -> None:
    source, learner = classes()
    episodes = source.sample(KEY, 3)
    plain = MAML(inner_steps=2, inner_lr=0.1).build(learner, source.spec)
    method = MetaCurvature(inner_steps=2, inner_lr=0.1).build(learner, source.spec)
    meta = method.init(KEY).meta
    found = method.learn(meta, episodes.support, episodes.query.x, (0, 2))
    expected = plain.learn(meta["params"], episodes.support, episodes.query.x, (0, 2))
    torch.testing.assert_close(found.predictions, expected.predictions)


def test_meta_curvature_multiplies_along_every_axis() -> None:
    from metalearn.algorithms.meta_curvature import identities, transform

    grad = normal(fold_in(KEY, "g"), (4, 3, 2, 5), dtype=F64)
    curvature = identities(grad)
    expected = {"outputs": 4, "inputs": 3, "rest": 10}
    assert {name: len(m) for name, m in curvature.items()} == expected
    curvature = {
        name: m + 0.1 * normal(fold_in(KEY, name), m.shape, dtype=F64)
        for name, m in curvature.items()
    }
    found = transform(curvature, grad).flatten()
    # vec(M(G)) = (M_o kron M_i kron M_f) vec(G) (equation 10)
    whole = torch.kron(torch.kron(curvature["outputs"], curvature["inputs"]), curvature["rest"])
    torch.testing.assert_close(found, whole @ grad.flatten())


def test_a_context_is_an_input_beside_x() -> None:
    """The bias b + W phi gives the outputs of a network that reads (x, phi)."""
    source = Sinusoid(shots=5).build(split="train", seed=0, dtype=F64)
    learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
    episode = one_episode(source)
    method = CAVIA(context_size=3, inner_lr=0.5).build(learner, source.spec)
    meta = method.init(KEY).meta
    theta, wide = meta["params"], torch.cat([meta["params"]["layers.0.weight"], meta["context"]], 1)

    def outputs(phi: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x, phi.expand(len(x), 3)], 1)
        z = torch.tanh(F.linear(both, wide, theta["layers.0.bias"]))
        z = torch.tanh(F.linear(z, theta["layers.1.weight"], theta["layers.1.bias"]))
        return F.linear(z, theta["head.weight"], theta["head.bias"])

    phi = torch.zeros(3, dtype=F64, requires_grad=True)
    loss = F.mse_loss(outputs(phi, episode.support.x), episode.support.y)
    (grad,) = torch.autograd.grad(loss, phi)
    expected = outputs(-0.5 * grad, episode.query.x).detach()
    torch.testing.assert_close(answer(method, meta, episode, 1), expected)


@pytest.mark.parametrize("component", [CAVIA, MetaCurvature, R2D2])
def test_regression_is_learned_on_sinusoids(component: type[MethodComponent]) -> None:
    source = Sinusoid(shots=10).build(split="train", seed=0)
    learner = MLP(sizes=(20, 20)).build(source.spec)
    method = component(outer=Adam(lr=0.01)).build(learner, source.spec)  # type: ignore[call-arg]
    state = method.init(KEY)
    assert method.step is not None

    def error(meta: object) -> float:
        curve = learning_curve(method, meta, source, steps=(0, 1), episodes=100, seed=1)
        return float(curve.mean[-1])

    before = error(state.meta)
    for step in range(150):
        state, _ = method.step(state, source.sample(fold_in(KEY, step), 10))
    assert error(state.meta) < 0.5 * before


def test_refusals_name_the_field() -> None:
    source, learner = classes()
    with pytest.raises(ConfigError, match=r"method.bias: 'layer.0.bias'"):
        CAVIA(bias="layer.0.bias").build(learner, source.spec)
    normed = MLP(sizes=(8, 7), norm="query_batch").build(source.spec)
    with pytest.raises(ConfigError, match="removed by a normalisation"):
        CAVIA().build(normed, source.spec)
    sinusoid = Sinusoid(shots=5).build(split="train", seed=0)
    for component in (ProtoMAML(), MatchingNet()):
        with pytest.raises(ConfigError, match="needs a classification task"):
            component.build(MLP(sizes=(8,)).build(sinusoid.spec), sinusoid.spec)
