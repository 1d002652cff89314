"""In-context learners: invariances, padding, the memory of a support set, likelihood."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import F64, Case, case, episodes
from clusters import Clusters

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.executors import executor
from metalearn.in_context import CAML, IN_CONTEXT, TransformerNeuralProcess
from metalearn.inner.rules import Adam
from metalearn.losses import gaussian_nll
from metalearn.models import MLP
from metalearn.rng import fold_in, normal
from metalearn.tasks import Sinusoid
from metalearn.testing.case import CLOSE, predictions_of
from metalearn.tree import leaves, take, tree_map
from metalearn.types import Batch

SEQUENCES = [name for name, kind in IN_CONTEXT.items() if kind.causal]
OF_SETS = [name for name in IN_CONTEXT if name not in SEQUENCES]
PROCESSES = [name for name in IN_CONTEXT if name.endswith("neural_process")]
SMALL = {"width": 16, "outer": Adam(lr=3e-3)}


def made(name: str) -> Case:
    return case(name, IN_CONTEXT[name])


def trained(name: str, steps: int = 5) -> tuple[Case, Any]:
    given = made(name)
    state = given.state()
    for number in range(steps):
        state, _ = given.step(state, given.data(number))
    return given, state.meta


def process(name: str, **options: Any) -> tuple[Any, Any]:
    source = Sinusoid(shots=10, queries=15).build(dtype=F64)
    learner = MLP(sizes=(20,)).build(source.spec)
    return source, IN_CONTEXT[name](**{**SMALL, **options}).build(learner, source.spec)


@pytest.mark.parametrize("name", OF_SETS)
def test_the_order_of_the_support_set_does_not_matter(name: str) -> None:
    given, meta = trained(name)
    episode = episodes(given)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = Batch(episode.support.x[:, order], episode.support.y[:, order])
    one, two = (
        predictions_of(given, meta, episode._replace(support=s)) for s in (episode.support, turned)
    )
    torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_has_an_order(name: str) -> None:
    given, meta = trained(name)
    episode = episodes(given)
    turned = Batch(episode.support.x.flip(1), episode.support.y.flip(1))
    one, two = (
        predictions_of(given, meta, episode._replace(support=s)) for s in (episode.support, turned)
    )
    assert float((one - two).abs().max()) > 1e-6


def test_permuted_classes_give_permuted_outputs() -> None:
    given, meta = trained("caml")
    episode = episodes(given)
    renamed = torch.tensor([2, 0, 1])  # class n is now called renamed[n]
    other = episode.support._replace(y=renamed[episode.support.y])
    one = predictions_of(given, meta, episode)
    two = predictions_of(given, meta, episode._replace(support=other))
    torch.testing.assert_close(one, two[..., renamed], **CLOSE)


def test_other_ways_take_the_same_meta() -> None:
    _, meta = trained("caml")
    source = Clusters("test", 24, ways=5)
    learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
    method = CAML(width=16, heads=2).build(learner, source.spec)
    curve = learning_curve(method, meta, source, (0,), 20)
    assert curve.scores.isfinite().all() and not method.traits.fixed_ways


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_padding_changes_nothing(name: str) -> None:
    """Examples of weight 0 among the support set, whatever they hold."""
    given, meta = trained(name)
    episode = episodes(given)
    x, y = episode.support.x, episode.support.y
    places = [0, 2, 3, 5, 6, 8]
    wide = normal(fold_in(3, "padding"), (len(x), 9, x.shape[-1]), F64) * 100
    labels, weight = torch.zeros(len(x), 9, dtype=y.dtype), torch.zeros(len(x), 9, dtype=F64)
    wide[:, places], labels[:, places], weight[:, places] = x, y, 1.0
    wide[:, 1] = float("nan")
    padded = episode._replace(support=Batch(wide, labels, weight))
    one, two = (predictions_of(given, meta, each) for each in (episode, padded))
    torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_the_memory_is_made_once_and_answers_any_query(name: str) -> None:
    """`adapt` reads the support set; queries one by one get what all of them get together."""
    given, meta = trained(name)
    episode = take(episodes(given), 0)
    assert given.method.adapt is not None and given.method.predict is not None
    memory = given.method.adapt(meta, episode.support, 0, fold_in(0))
    together = given.method.predict(meta, memory, episode.support, episode.query.x)
    alone = [given.method.predict(meta, memory, episode.support, x[None]) for x in episode.query.x]
    torch.testing.assert_close(torch.cat(alone), together, **CLOSE)
    assert sum(leaf.numel() for leaf in leaves(memory)) > 0


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_maximises_likelihood_and_is_scored_by_its_mean(name: str) -> None:
    source, method = process(name)
    state, episode = method.init(fold_in(0, "init")), source.sample(fold_in(0, "train"), 3)
    _, metrics = method.step(state, episode)
    learned = method.learn(state.meta, episode.support, episode.query.x, (0,))
    mean, log_deviation = learned.predictions[:, 0], learned.log_deviation[:, 0]
    assert mean.shape == log_deviation.shape == episode.query.y.shape
    scale, y = log_deviation.exp(), episode.query.y
    expected = -torch.distributions.Normal(mean, scale).log_prob(y).mean()
    torch.testing.assert_close(metrics["query_nll"], expected)
    torch.testing.assert_close(metrics["query_loss"], (mean - y).square().mean())
    grads, _ = method.task_grad(state.meta, take(episode, 0))
    assert all(leaf.abs().sum() > 0 for leaf in leaves(grads))


def test_the_likelihood_of_a_normal_distribution() -> None:
    y = torch.tensor([[0.5], [2.0]], dtype=F64)
    mean, log_deviation = torch.zeros_like(y), torch.zeros_like(y)
    known = (0.125 + 2.0) / 2 + math.log(2 * math.pi) / 2
    assert float(gaussian_nll(mean, log_deviation, y)) == pytest.approx(known)
    weight = torch.tensor([1.0, 0.0], dtype=F64)
    one = float(gaussian_nll(mean, log_deviation, y, weight))
    assert one == pytest.approx(0.125 + math.log(2 * math.pi) / 2)


@pytest.mark.parametrize("name", PROCESSES)
def test_executors_agree_on_a_process(name: str) -> None:
    source, method = process(name)
    episode = source.sample(fold_in(0, "train"), 4)
    found = []
    for how, chunk in (("loop", None), ("vmap", None), ("chunk", 2), ("traced", None)):
        step = executor.make_step(method, how, *([] if chunk is None else [chunk]))
        state, metrics = step(method.init(fold_in(0, "init")), episode)
        found.append((state.meta, metrics))
    for one in found[1:]:
        tree_map(lambda a, b: torch.testing.assert_close(a, b, **CLOSE), found[0], one)


def test_sinusoids_are_learned_in_context() -> None:
    source, method = process("transformer_neural_process", width=32)
    state = method.init(fold_in(0, "init"))
    before = learning_curve(method, state.meta, source, (0,), 100).loss.mean()
    for step in range(250):
        state, _ = method.step(state, source.sample(fold_in(0, "train", step), 16))
    after = learning_curve(method, state.meta, source, (0,), 100).loss.mean()
    assert after < 0.6 * before


@pytest.mark.parametrize("name", ["attentive_neural_process", "gpicl"])
def test_classes_are_learned_in_context(name: str) -> None:
    given = case(name, IN_CONTEXT[name], outer=Adam(lr=0.01))
    state, tests = given.state(), Clusters("test", 24)
    for number in range(400):
        state, _ = given.step(state, given.data(number))
    assert learning_curve(given.method, state.meta, tests, (0,), 300).mean[0] > 0.45


def test_what_does_not_fit_is_refused() -> None:
    source = Sinusoid(shots=5).build()
    learner = MLP().build(source.spec)
    for name in ("gpicl", "snail", "caml"):
        with pytest.raises(ConfigError, match="needs a classification task"):
            IN_CONTEXT[name]().build(learner, source.spec)
    with pytest.raises(ValueError, match="multiple of 3"):
        TransformerNeuralProcess(width=64, heads=3)
    spec = Sinusoid(shots=5).build().spec.__class__(**{**source.spec.__dict__, "loss": "huber"})
    with pytest.raises(ConfigError, match="normal distribution"):
        TransformerNeuralProcess().build(learner, spec)
