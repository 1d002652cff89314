"""`from_module` over a zoo of modules: the module's own function, its leaves and its start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from zoo import VECTOR, Exhibit
from zoo_networks import ZOO

from metalearn.algorithms import MAML
from metalearn.errors import ConfigError
from metalearn.evaluate import learning_curve
from metalearn.models import from_module
from metalearn.models.external.checks import unfused_attention
from metalearn.models.external.module import arguments, entry
from metalearn.rng import fold_in, integers, normal
from metalearn.types import Batch, Episode, EpisodeSpec, Learner, Params

F64 = torch.float64
KEY = fold_in(17, "zoo")
CLOSE = {F64: 1e-12, torch.float32: 1e-6}
each_exhibit = pytest.mark.parametrize("exhibit", ZOO.values(), ids=list(ZOO))
each_dtype = pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])


def spec_of(exhibit: Exhibit, dtype: torch.dtype = F64) -> EpisodeSpec:
    return EpisodeSpec(**{**vars(exhibit.spec), "dtype": dtype})


def examples(exhibit: Exhibit, count: int, dtype: torch.dtype = F64, name: str = "x") -> Tensor:
    shape = (count, *exhibit.spec.x_shape)
    if exhibit.tokens:
        return integers(fold_in(KEY, name), shape, exhibit.tokens)
    return normal(fold_in(KEY, name), shape, dtype)


def network(exhibit: Exhibit) -> nn.Module:
    torch.manual_seed(5)
    return exhibit.make().train(exhibit.train)


def learner_of(exhibit: Exhibit, net: Any, dtype: torch.dtype = F64) -> Learner:
    return from_module(net, spec_of(exhibit, dtype), **exhibit.options)


def moved(params: Params) -> Params:
    """Parameters that are at no special start."""
    return {
        name: value
        if name.startswith("stats.")
        else value + 0.1 * normal(fold_in(KEY, name), value.shape, value.dtype)
        for name, value in params.items()
    }


def cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    return net.double() if dtype == F64 else net.float()  # net.to(dtype) drops imaginary parts


def called(exhibit: Exhibit, net: nn.Module, x: Tensor) -> Tensor:
    args, named = arguments(x, exhibit.options.get("inputs"))
    return entry(net(*args, **named), exhibit.options.get("output"))


def twin(exhibit: Exhibit, dtype: torch.dtype) -> nn.Module:
    """The module once more, in the modes of its layers that its policy stands for."""
    net = cast(network(exhibit), dtype).eval()
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.train(exhibit.policy == "query_batch")
        if isinstance(layer, _InstanceNorm):
            layer.train(exhibit.train)
    return net


def leaf_of(name: str, head: str, params: Params) -> str:
    """The leaf of a parameter or buffer of the module."""
    layer, _, last = name.rpartition(".")
    if layer == head and f"head.{last}" in params:
        return f"head.{last}"
    return next(leaf for leaf in (f"stats.{name}", f"module.{name}", name) if leaf in params)


def by_torch(exhibit: Exhibit, params: Params, x: Tensor, head: str) -> Tensor:
    """The module's own forward, with the parameters copied into it one by one."""
    net = twin(exhibit, params[next(iter(params))].dtype)
    with torch.no_grad(), unfused_attention():
        called(exhibit, net, x)  # lazy layers
        for name, value in net.named_parameters():
            value.copy_(params[leaf_of(name, head, params)])
        return called(exhibit, net, x)


def head_of(net: nn.Module, learner: Learner, params: Params) -> str:
    """The name in the module of the layer whose weight is head.weight."""
    if learner.readout == "none":
        return ""
    found = [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.weight.shape == params["head.weight"].shape
        and torch.equal(layer.weight, params["head.weight"])
    ]
    assert len(found) == 1
    return found[0]


def episodes(exhibit: Exhibit, tasks: int, name: str) -> Episode:
    """Random tasks whose targets have the shape of the module's outputs."""
    spec, parts = exhibit.spec, []
    for part, count in (("support", 6), ("query", 5)):
        key = f"{name} {part}"
        x = torch.stack([examples(exhibit, count, name=f"{key} {n}") for n in range(tasks)])
        shape = (tasks, count, *exhibit.targets)
        drawn = fold_in(KEY, key, "y")
        y = integers(drawn, shape, 3) if spec.classification else normal(drawn, shape, F64)
        if spec.classification and part == "support" and y.dim() == 2:
            y[:, :3] = torch.arange(3)  # a query may only ask for what the support set shows
        parts.append(Batch(x, y))
    info = {"key": fold_in(KEY, name, torch.arange(tasks)), "step": torch.zeros(tasks, dtype=F64)}
    return Episode(*parts, info)


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 40


@each_dtype
@each_exhibit
def test_apply_is_the_modules_own_forward(exhibit: Exhibit, dtype: torch.dtype) -> None:
    net, x = cast(network(exhibit), dtype), examples(exhibit, 5, dtype)
    if exhibit.name == "lazy":
        called(exhibit, net, x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learner = learner_of(exhibit, net, dtype)
    start = learner.init(KEY)
    params, head = moved(start), head_of(net, learner, start)
    found = learner.apply(params, x)
    expected = by_torch(exhibit, params, x, head)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=CLOSE[dtype], atol=10 * CLOSE[dtype])
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())  # left alone


@each_exhibit
def test_features_run_without_the_head_and_traits_are_true(exhibit: Exhibit) -> None:
    learner = learner_of(exhibit, cast(network(exhibit), F64))
    params, x = moved(learner.init(KEY)), examples(exhibit, 5)
    assert (learner.normalisation, learner.readout) == (exhibit.policy, exhibit.readout)
    out = learner.apply(params, x)
    body = {name: value for name, value in params.items() if name[:5] != "head."}
    if learner.readout != "none":
        assert {"head.weight"} <= set(params) - set(body) <= {"head.weight", "head.bias"}
    z = learner.features(body, x)
    assert z.shape[0] == 5 and (z.dim() == 2 or out.dim() > 2)
    if learner.readout == "linear":
        expected = z @ params["head.weight"].T + params.get("head.bias", torch.zeros(1))
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    others = examples(exhibit, 5, name="others")
    other = learner.apply(params, torch.cat([x[:1], others[1:]]))
    interact = not torch.allclose(out[0], other[0], rtol=1e-9, atol=1e-9)
    assert interact == (exhibit.policy == "query_batch")


@each_exhibit
def test_an_instance_keeps_its_values_and_a_function_draws_them_by_key(exhibit: Exhibit) -> None:
    net = cast(network(exhibit), F64)
    if exhibit.name == "lazy":
        called(exhibit, net, examples(exhibit, 2))
    learner, state = learner_of(exhibit, net), torch.get_rng_state()
    one, two = learner.init(KEY), learner.init(fold_in(KEY, "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    trained = {name: value for name, value in net.named_parameters() if value.requires_grad}
    moving = {name: value for name, value in one.items() if not name.startswith("stats.")}
    assert len(moving) == len(trained)
    found, wanted = (
        sum(float(v.detach().sum()) for v in values.values()) for values in (moving, trained)
    )
    assert found == pytest.approx(wanted, rel=1e-12)
    drawn = learner_of(exhibit, lambda: exhibit.make().train(exhibit.train))
    one, again, two = (drawn.init(key) for key in (KEY, KEY, fold_in(KEY, "other")))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(one) == list(learner.init(KEY)) and {v.dtype for v in one.values()} == {F64}
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], two[name]) for name in one)
    keys = fold_in(KEY, torch.arange(2))
    both = torch.func.vmap(drawn.init)(keys)
    assert all(torch.equal(both[name][1], drawn.init(keys[1])[name]) for name in one)


@each_exhibit
def test_a_module_with_adapted_parameters_is_handed_back(exhibit: Exhibit) -> None:
    learner = learner_of(exhibit, cast(network(exhibit), F64))
    params, x = moved(learner.init(KEY)), examples(exhibit, 5)
    assert learner.module is not None
    net = learner.module(params)
    with torch.no_grad(), unfused_attention():
        found = called(exhibit, net, x)
    torch.testing.assert_close(found, learner.apply(params, x), rtol=1e-10, atol=1e-10)


# leaves


def test_tied_frozen_and_buffered_tensors_are_leaves_of_their_kind() -> None:
    tied = learner_of(ZOO["Tied"], ZOO["Tied"].make()).init(KEY)
    assert "a.weight" in tied and "b.weight" not in tied
    words = learner_of(ZOO["TiedHead"], ZOO["TiedHead"].make()).init(KEY)
    assert set(words) == {"words.weight", "mix.weight", "mix.bias"}
    frozen = learner_of(ZOO["Frozen"], ZOO["Frozen"].make())
    assert frozen.fixed == ("body.weight", "body.bias")
    assert {"stats.body.weight", "stats.body.bias"} < set(frozen.init(KEY))
    buffered = learner_of(ZOO["RandomFeatures"], ZOO["RandomFeatures"].make)
    one, two = (buffered.init(fold_in(KEY, n)) for n in range(2))
    assert "stats.waves" in one and not torch.equal(one["stats.waves"], two["stats.waves"])
    assert not any("order" in name for name in one)
    norms = learner_of(ZOO["resnet18_running"], ZOO["resnet18_running"].make()).init(KEY)
    assert "stats.bn1.running_var" in norms
    batch = learner_of(ZOO["resnet18"], ZOO["resnet18"].make()).init(KEY)
    assert not any(name.startswith("stats.") for name in batch)


@pytest.mark.parametrize("name", ["Frozen", "RadialBasis", "Graph", "resnet18_in_evaluation_mode"])
def test_no_step_moves_what_is_fixed(name: str) -> None:
    """Three steps of MAML: neither the inner nor the outer rule."""
    exhibit = ZOO[name]
    learner = learner_of(exhibit, exhibit.make().train(exhibit.train))
    method = MAML(inner_steps=2, inner_lr=0.1).build(learner, exhibit.spec)
    state = method.init(KEY)
    start = dict(state.meta)
    for number in range(3):
        assert method.step is not None
        state, _ = method.step(state, episodes(exhibit, 2, f"step {number}"))
    still = {leaf for leaf in start if torch.equal(start[leaf], state.meta[leaf])}
    assert still == {leaf for leaf in start if leaf.startswith("stats.")} and still


def test_running_statistics_move_as_torchs_do() -> None:
    """One batch in training mode, for every layer of a ResNet."""
    exhibit = ZOO["resnet18_running"]
    net = cast(network(exhibit), F64)
    learner = learner_of(exhibit, net)
    params, x = learner.init(KEY), examples(exhibit, 7)
    new, twice = learner.stats(params, x), network(exhibit).double().train()
    twice(x)
    buffers = dict(twice.named_buffers())
    stats = [name for name in params if name.startswith("stats.")]
    assert len(stats) == 2 * sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    for name in stats:
        expected = buffers[name.removeprefix("stats.")]
        torch.testing.assert_close(new[name], expected, rtol=1e-10, atol=1e-12)
        assert not torch.equal(new[name], params[name])
    assert all(new[name] is params[name] for name in params if name not in stats)


@pytest.mark.parametrize("policy", ["support", "support_plus_one"])
def test_torchs_batch_norm_takes_the_policies_of_the_support_set(policy: Any) -> None:
    exhibit = ZOO["batch_norm_of_vectors"]
    net = network(exhibit).double()
    learner = from_module(net, exhibit.spec, policy=policy)
    params, x = learner.init(KEY), examples(exhibit, 4)
    context = examples(exhibit, 6, name="context")
    found = learner.apply(params, x, context=context)
    if policy == "support_plus_one":
        expected = torch.stack([net(torch.cat([context, one[None]]))[-1] for one in x])
    else:
        z, c = net[0](x), net[0](context)
        z = (z - c.mean(0)) / (c.var(0, correction=0) + net[1].eps).sqrt()
        expected = net[3](z.relu())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    assert learner.normalisation == policy


# starts and heads


def test_pretrained_values_are_kept_and_a_new_head_is_drawn() -> None:
    exhibit = ZOO["resnet18"]
    keeping = from_module(exhibit.make, exhibit.spec, keep=True)
    one, two = (keeping.init(fold_in(KEY, n)) for n in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    net, five = exhibit.make(), EpisodeSpec("classification", 5, 1, 1, (2, 12, 12), 5, 20)
    with pytest.raises(ConfigError, match="fc: has 3 outputs, the task needs 5: head='new'"):
        from_module(net, five)
    learner = from_module(net, five, head="new")
    one, two = (learner.init(fold_in(KEY, n)) for n in range(2))
    differ = {name for name in one if not torch.equal(one[name], two[name])}
    assert differ == {"head.weight", "head.bias"} and one["head.weight"].shape == (5, 16)
    assert torch.equal(one["conv1.weight"], net.conv1.weight)
    assert learner.apply(one, torch.zeros(3, 2, 12, 12)).shape == (3, 5)
    assert float(one["head.weight"].abs().max()) <= 0.25
    backbone = from_module(ZOO["fully_convolutional"].make(), IMAGE5, head="new")
    params = backbone.init(KEY)
    assert params["head.weight"].shape == (5, 3) and "module.0.weight" in params
    with pytest.raises(ConfigError, match="init must be omitted"):
        from_module(net, exhibit.spec, keep=True, init="uniform")


IMAGE5 = EpisodeSpec("classification", 5, 1, 1, (2, 8, 8), 5, 20)


def test_a_head_is_found_named_or_left_out() -> None:
    exhibit = ZOO["perceptron"]
    net = exhibit.make()
    found, named = (from_module(net, exhibit.spec, head=head).init(KEY) for head in ("auto", "2"))
    assert list(found) == list(named) == ["0.weight", "0.bias", "head.weight", "head.bias"]
    none = from_module(net, exhibit.spec, head=None)
    assert none.readout == "none" and list(none.init(KEY)) == [n for n, _ in net.named_parameters()]
    assert from_module(net, exhibit.spec, head="0").readout == "module"
    with pytest.raises(ConfigError, match="head: 'fc' is not a Linear layer of the module; valid"):
        from_module(net, exhibit.spec, head="fc")
    with pytest.raises(ConfigError, match="'head' has no trainable weight that forward uses"):
        from_module(ZOO["TiedHead"].make(), ZOO["TiedHead"].spec, head="head")


def test_a_start_by_scheme_or_by_function() -> None:
    net = ZOO["Frozen"].make()
    ones = from_module(net, VECTOR, init=lambda key, name, shape, dtype: torch.ones(shape))
    params = ones.init(KEY)
    assert all((params[leaf] == 1).all() for leaf in params if not leaf.startswith("stats."))
    assert torch.equal(params["stats.body.weight"], net.body.weight.double())
    drawn = from_module(net, VECTOR, init="uniform")
    assert not torch.equal(
        drawn.init(KEY)["head.weight"], drawn.init(fold_in(KEY, 1))["head.weight"]
    )


@pytest.mark.parametrize("name", ["UNet", "lstm_tagger", "Siren"])
def test_targets_of_any_shape_pass_through_training_and_tests(name: str) -> None:
    """y [B, *Y]: a picture, a label a step, three numbers."""
    exhibit = ZOO[name]
    learner = learner_of(exhibit, exhibit.make())
    method = MAML(inner_steps=1).build(learner, exhibit.spec)
    state, source = method.init(KEY), Source(exhibit)
    assert method.step is not None
    assert method.step(state, source.sample(KEY, 2))[1]["query_loss"].isfinite()
    curve = learning_curve(method, state.meta, source, (0, 1), episodes=3)
    assert curve.loss.shape == (3, 2) and curve.loss.isfinite().all()
    assert curve.scores.shape == (3, 2) and curve.scores.isfinite().all()


class Source:
    """Random tasks of an exhibit."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit, self.spec = exhibit, exhibit.spec

    def sample(self, key: Tensor, num_tasks: int, start: int = 0) -> Episode:
        return episodes(self.exhibit, num_tasks, f"{start}")

    def examples(self, key: Tensor, size: int) -> Batch:
        raise NotImplementedError
