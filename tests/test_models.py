"""Every model of the table under every norm policy: the module as a function, its names, and who
sees whom."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metalearn.component import Component, ModelComponent
from metalearn.errors import ConfigError
from metalearn.kernels.norm_relu_pool import EPS
from metalearn.models import MLP, MODELS, Conv4, ResNet12, WideResNet
from metalearn.models.conv4 import FourBlocks, pool
from metalearn.models.mlp import Perceptron
from metalearn.models.norm import MOMENTUM, Norm
from metalearn.models.resnet12 import ResNet
from metalearn.models.wide_resnet import WideNet
from metalearn.rng import fold_in, normal
from metalearn.testing.models import (
    IMAGE,
    KEY,
    MODEL_CHECKS,
    VECTOR,
    ModelCase,
    data,
    perturbed_params,
)
from metalearn.types import EpisodeSpec, Learner

F64 = torch.float64
POLICIES = ["query_batch", "support", "support_plus_one", "running", "none"]
GOLDEN = Path(__file__).parent / "golden" / "parameter_names.json"
SPECS = {"mlp": VECTOR}  # every other model is given images
# What makes a model small or shows another side of it; a model that is not here is built from its
# defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mlp": [{"sizes": (7, 5)}, {"sizes": (4,), "activation": "gelu"}],
    "conv4": [
        {"filters": 4},
        {"filters": 4, "downsample": "pool", "flatten": True},
        {"filters": 4, "downsample": "pool", "downsampled_blocks": 3},
    ],
    "resnet12": [{"widths": (3, 4, 5, 6), "drop": 0.0}],
    "wide_resnet": [{"depth": 10, "width": 1}],
}
# Those with an option for it; tests/test_objectives.py looks at the others.
NETWORKS = {name: part for name, part in MODELS.items() if "norm" in part.model_fields}
CASES = [
    pytest.param(name, part(**options, norm=policy), id=f"{name}-{place}-{policy}")
    for name, part in NETWORKS.items()
    for place, options in enumerate(VARIANTS.get(name, [{}]))
    for policy in POLICIES
]
each_model = pytest.mark.parametrize(("name", "component"), CASES)


def learner_of(name: str, component: Any, dtype: torch.dtype = F64) -> Learner:
    spec = SPECS.get(name, IMAGE)
    learner: Learner = component.build(EpisodeSpec(**{**vars(spec), "dtype": dtype}))
    return learner


def module_of(component: Any) -> nn.Module:
    """The torch module behind a model of ours."""
    if isinstance(component, MLP):
        return Perceptron(6, component.sizes, 3, component.activation, component.norm).double()
    c = component
    if isinstance(component, ResNet12):
        return ResNet(IMAGE.x_shape, component, 3).double()
    if isinstance(component, WideResNet):
        return WideNet(1, component, 3).double()
    strided, blocks = c.downsample == "stride", c.downsampled_blocks
    return FourBlocks(IMAGE.x_shape, c.filters, 3, strided, c.flatten, c.norm, blocks).double()


#
# the common contract


@each_model
@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__[6:])
def test_every_model(name: str, component: ModelComponent, check: Any) -> None:
    check(ModelCase(component, SPECS.get(name, IMAGE)))


@each_model
def test_apply_is_the_module_with_these_parameters(name: str, component: Component) -> None:
    learner = learner_of(name, component)
    params, module = perturbed_params(learner), module_of(component)
    module.load_state_dict({name.removeprefix("stats."): value for name, value in params.items()})
    x = data(learner, 9)
    torch.testing.assert_close(learner.apply(params, x), module(x), rtol=1e-12, atol=1e-12)
    assert learner.apply(params, x).shape == (9, 3) and learner.apply(params, x).dtype == F64
    assert learner.normalisation == component.norm and learner.outputs == 3  # type: ignore[attr-defined]


def test_parameter_names_are_as_recorded() -> None:
    """A renamed parameter makes old checkpoints unreadable: write the file anew only when that is
    meant."""
    found = {
        param.id: {n: list(v.shape) for n, v in learner_of(*param.values).init(KEY).items()}
        for param in CASES
    }
    assert json.loads(GOLDEN.read_text()) == found


# the norm policies


@pytest.mark.parametrize("name", NETWORKS)
def test_support_plus_one_is_each_query_with_the_support_set(name: str) -> None:
    """One by one through the module, which normalises the batch in hand."""
    for options in VARIANTS.get(name, [{}]):
        component = MODELS[name](**options, norm="support_plus_one")
        learner, module = learner_of(name, component), module_of(component)
        params = perturbed_params(learner)
        x, context = data(learner, 4), data(learner, 6, "context")
        alone = [
            functional_call(module, params, torch.cat([context, query.unsqueeze(0)]))[-1]
            for query in x
        ]
        torch.testing.assert_close(
            learner.apply(params, x, context=context), torch.stack(alone), rtol=1e-10, atol=1e-10
        )


def test_support_normalises_by_the_support_set_in_every_layer() -> None:
    """By hand: mean and biased variance of the support's activations, layer after layer."""
    learner = MLP(sizes=(7, 5), norm="support").build(VECTOR)
    params, z, c = perturbed_params(learner), data(learner, 4), data(learner, 6, "context")
    given = (z, c)
    for place in range(2):
        z, c = (
            F.linear(v, params[f"layers.{place}.weight"], params[f"layers.{place}.bias"])
            for v in (z, c)
        )
        mean, sd = c.mean(0), (c.var(0, correction=0) + EPS).sqrt()
        z, c = (
            (v - mean) / sd * params[f"norms.{place}.weight"] + params[f"norms.{place}.bias"]
            for v in (z, c)
        )
        z, c = z.relu(), c.relu()
    expected = F.linear(z, params["head.weight"], params["head.bias"])
    torch.testing.assert_close(
        learner.apply(params, given[0], context=given[1]), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(9, 5), (6, 5, 4, 3)])
def test_a_batchs_own_statistics_are_torchs_batch_norm(shape: tuple[int, ...]) -> None:
    x, layer = normal(KEY, shape, F64), Norm(5, "query_batch").double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.5, 0.3, -1.0, 2.0, 1.0]))
        layer.bias.copy_(torch.arange(5))
    expected = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=EPS)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_running_statistics_are_refreshed_and_read(name: str) -> None:
    """Torch's batch norm beside it, in training mode and in evaluation."""
    options = VARIANTS.get(name, [{}])[0]
    learner = learner_of(name, MODELS[name](**options, norm="running"))
    params, x = learner.init(KEY), data(learner, 9)
    stats = [n for n in params if n.startswith("stats.")]
    assert stats and all((params[n] == (1 if n.endswith("var") else 0)).all() for n in stats)
    new = learner.stats(params, x)
    assert all(
        new[n] is params[n] or torch.equal(new[n], params[n]) for n in params if n not in stats
    )
    first = stats[0].rpartition(".")[0]
    assert name in ("resnet12", "wide_resnet") or first == "stats.norms.0"
    if name == "wide_resnet":
        z = F.conv2d(x, params["stem.weight"], padding=1).transpose(0, 1).flatten(1).T
    elif name == "resnet12":
        z = F.conv2d(x, params["blocks.0.convs.0.conv.weight"], padding=1)
        z = z.transpose(0, 1).flatten(1).T
    elif name == "mlp":
        z = F.linear(x, params["layers.0.weight"], params["layers.0.bias"])
    else:
        z = (
            F.conv2d(x, params["convs.0.weight"], params["convs.0.bias"], stride=2, padding=1)
            .transpose(0, 1)
            .flatten(1)
            .T
        )
    torch.testing.assert_close(new[f"{first}.mean"], MOMENTUM * z.mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        new[f"{first}.var"], (1 - MOMENTUM) + MOMENTUM * z.var(0), rtol=1e-10, atol=0
    )
    assert (learner.apply(params, x) - learner.apply(new, x)).abs().max() > 1e-4
    for policy in ("none", "query_batch"):
        other = learner_of(name, MODELS[name](**options, norm=policy))
        assert other.stats(params, x) is params


def test_pooling_is_torchs_and_drops_an_odd_border() -> None:
    for size in (4, 5, 7):
        x = normal(KEY, (2, 3, size, size + 1), F64).requires_grad_()
        first, other = pool(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), F.max_pool2d(x, 2)
        torch.testing.assert_close(first, other)
        weight = normal(fold_in(KEY, "w"), other.shape, F64)
        ours, theirs = (torch.autograd.grad((f * weight).sum(), x)[0] for f in (first, other))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_the_last_blocks_keep_the_size_of_their_map(downsample: Any) -> None:
    """With pooling: the network of RFS's code, whose fourth block feeds the average directly."""
    spec = EpisodeSpec("classification", 5, 1, 1, (3, 32, 32), 5, 20, dtype=F64)
    conv4 = Conv4(filters=6, downsample=downsample, downsampled_blocks=3, norm="query_batch")
    learner = conv4.build(spec)
    params = perturbed_params(learner)
    x = z = normal(KEY, (7, 3, 32, 32), F64)
    for place in range(4):
        stride = 2 if downsample == "stride" and place < 3 else 1
        weight, bias = (params[f"convs.{place}.{part}"] for part in ("weight", "bias"))
        z = F.conv2d(z, weight, bias, stride=stride, padding=1)
        weight, bias = (params[f"norms.{place}.{part}"] for part in ("weight", "bias"))
        z = F.relu(F.batch_norm(z, None, None, weight, bias, training=True, eps=EPS))
        z = F.max_pool2d(z, 2) if downsample == "pool" and place < 3 else z
    assert z.shape[-2:] == (4, 4)
    expected = F.linear(z.mean((2, 3)), params["head.weight"], params["head.bias"])
    torch.testing.assert_close(learner.apply(params, x), expected, rtol=1e-10, atol=1e-10)


def test_conv4_refuses_what_is_no_image_or_too_small() -> None:
    with pytest.raises(ConfigError, match="use mlp"):
        Conv4().build(VECTOR)
    small = EpisodeSpec("classification", 3, 2, 4, (1, 15, 20), 3, 20)
    with pytest.raises(ConfigError, match=r"at least 16 x 16.*use stride"):
        Conv4(downsample="pool").build(small)
    assert Conv4(filters=2, downsample="pool", downsampled_blocks=3).build(small).outputs == 3
    assert Conv4(filters=2).build(small).init(KEY)["head.weight"].shape == (3, 2)


@pytest.mark.parametrize(("scheme", "bound"), [("uniform", 100**-0.5), ("truncated_normal", 0.02)])
def test_starts_have_their_distribution(scheme: Any, bound: float) -> None:
    """Uniform within 1/sqrt(fan in); normal of deviation 0.01 cut at two deviations, which leaves
    0.88 of it."""
    spec = EpisodeSpec("regression", 1, 5, 5, (100,), 1, 0, dtype=F64)
    params = MLP(sizes=(400,), init=scheme).build(spec).init(KEY)
    weight = params["layers.0.weight"]
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    sd = bound / 3**0.5 if scheme == "uniform" else 0.01 * 0.8796
    assert abs(float(weight.std()) / sd - 1) < 0.02 and abs(float(weight.mean())) < 4 * sd / 200
    assert (params["layers.0.bias"] == 0).all() == (scheme != "uniform")


def test_conv4_starts_by_glorot_and_its_head_as_asked() -> None:
    params = Conv4(filters=32, head_std=1.0, norm="query_batch").build(IMAGE).init(KEY)
    bound = (6 / (9 * 64)) ** 0.5
    assert 0.99 * bound < params["convs.2.weight"].abs().max() <= bound
    assert (params["convs.2.bias"] == 0).all() and (params["norms.2.weight"] == 1).all()
    assert 0.7 < params["head.weight"].std() < 1.3
    assert Conv4(filters=32).build(IMAGE).init(KEY)["head.weight"].abs().max() <= (6 / 35) ** 0.5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("policy", ["none", "query_batch", "running"])
def test_what_is_exported_consists_of_torchs_operators(name: str, policy: Any) -> None:
    for options in VARIANTS.get(name, [{}]):
        net = module_of(NETWORKS[name](**options, norm=policy)).eval()
        x = data(learner_of(name, NETWORKS[name](**options, norm=policy)), 4)
        traced, exported = torch.jit.trace(net, x), torch.export.export(net, (x,))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        assert "metalearn" not in str(exported.graph)
        for found in (torch.jit.load(file)(x), exported.module()(x)):
            torch.testing.assert_close(found, net(x), rtol=1e-10, atol=1e-10)


def test_images_with_channels_last_are_refused() -> None:
    spec = EpisodeSpec("classification", 3, 1, 1, (32, 32, 3), 3, 9)
    with pytest.raises(ConfigError, match=r"looks like \[H, W, channels\].*transpose"):
        Conv4().build(spec)
    assert Conv4().build(replace(spec, x_shape=(6, 32, 1))).x_shape == (6, 32, 1)


@pytest.mark.parametrize("name", ["mlp", "sized_mlp", "conv4"])
def test_integer_inputs_are_refused_with_their_dtype(name: str) -> None:
    spec = VECTOR if "mlp" in name else IMAGE
    learner = MODELS[name]().build(spec)
    x = torch.ones(2, *spec.x_shape, dtype=torch.uint8 if name == "conv4" else torch.int64)
    with pytest.raises(ConfigError, match=r"^inputs: are (uint8|int64), .* give x.float\(\)"):
        learner.apply(learner.init(KEY), x)
