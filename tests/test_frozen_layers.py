"""Pretrained networks whose first layers stay frozen: `frozen_through` of the model pretrained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_pretrained import LITE0, TINY, experiment, source, tiny_network, with_weights
from test_pretrained import tiny as tiny  # the fixture that registers the tiny network
from torch import Tensor, nn

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.models import Pretrained, pretrained
from metalearn.models.backbones import BACKBONES
from metalearn.models.frozen_layers import split_after
from metalearn.rng import fold_in, uniform
from metalearn.testing import check_model
from metalearn.types import Batch, EpisodeSpec

LAYER = "backbone.body.2"  # the first ReLU of the tiny network
LAST = ["backbone.body.3", "head"]


def learners(**options: Any) -> tuple[Any, Any, Any]:
    """Return tasks, the network with all layers to learn, and the one with frozen layers."""
    tasks = source(dtype=torch.float64)
    whole = Pretrained(backbone="tiny", size=16, frozen=False, **options)
    part = whole.model_copy(update={"frozen_through": LAYER})
    return tasks, whole.build(tasks.spec), part.build(tasks.spec)


def test_the_contract_of_models_holds() -> None:
    check_model(
        Pretrained(backbone="tiny", size=16, frozen=False, frozen_through=LAYER),
        skip={"check_the_start_is_a_function_of_the_key_alone": "the weights are those of a file"},
    )


def test_a_network_in_two_parts_is_the_network() -> None:
    tasks, whole, part = learners()
    key, x = fold_in(0, "start"), tasks.sample(fold_in(1, "x"), 1).query.x[0]
    all_params, params = whole.init(key), part.init(key)
    assert set(params) < set(all_params)
    for name in ("backbone.body.0.weight", "backbone.body.1.bias"):
        assert name in all_params and name not in params and name in part.fixed
    torch.testing.assert_close(part.features(params, x), whole.features(all_params, x))
    torch.testing.assert_close(part.apply(params, x), whole.apply(all_params, x))
    torch.testing.assert_close(part.module(params)(x), whole.apply(all_params, x))
    assert part.normalisation == "frozen" and part.x_shape == tasks.spec.x_shape
    changed = {name: leaf + 0.1 for name, leaf in params.items()}
    torch.testing.assert_close(part.module(changed)(x), part.apply(changed, x))


@pytest.mark.parametrize("method", ["fine_tune", "fine_tune_cross_validated", "fine_tune_ensemble"])
@pytest.mark.parametrize("copies", [0, 2])
def test_steps_on_stored_outputs_are_those_of_the_network(method: str, copies: int) -> None:
    tasks, whole, part = learners()
    options = {"adapts": LAST, "head_start": "prototypes", "inner_lr": 0.05, "copies": copies}
    component = ml.transfer.TRANSFER[method](**options)
    episode, found = tasks.sample(fold_in(1, "x"), 2), []
    for learner in (whole, part):
        built = component.build(learner, tasks.spec)
        meta = built.init(fold_in(0, "init")).meta
        support = Batch(episode.support.x, episode.support.y)
        notes = built.learn(meta, support, episode.query.x, (0, 1, 3), key=episode.info["key"])
        found.append(notes.predictions)
    torch.testing.assert_close(found[1], found[0])
    assert not torch.allclose(found[1][:, 0], found[1][:, 2])


@pytest.fixture
def images_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images of every call of the first layer."""
    seen: list[int] = []

    class Counted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor:  # and no fake one, of which FLOPs are counted
                seen.append(len(x))
            return super().forward(x)

    def counted(size: int, trained: bool) -> nn.Module:
        net = cast(nn.Sequential, tiny_network(size, trained))
        first = Counted(3, 6, 3, stride=2)
        first.load_state_dict(net[0].state_dict())
        net[0] = first
        return net

    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, make=counted))
    return seen


def test_the_frozen_layers_see_an_image_of_a_task_once(images_seen: list[int]) -> None:
    tasks, _, part = learners()
    built = ml.transfer.FineTune(adapts=LAST).build(part, tasks.spec)
    meta, episode = built.init(fold_in(0, "init")).meta, tasks.sample(fold_in(1, "x"), 1)
    images_seen.clear()
    built.learn(meta, episode.support, episode.query.x, (0, 1, 5), key=episode.info["key"])
    assert sorted(images_seen) == [6, 6]  # 3 classes with 2 examples, and 2 queries each


def in_steps(through: str | None, **method: Any) -> dict[str, Any]:
    config = experiment(**{"name": "fine_tune", "adapts": LAST, "inner_lr": 0.05, **method})
    config["model"] |= {"frozen": False, "frozen_through": through}
    config["evaluate"] |= {"steps": [0, 1, 5], "headline_step": 5}
    return config


def test_a_run_stores_the_outputs_and_looks_them_up(tmp_path: Path, images_seen: list[int]) -> None:
    """The first layers compute an image of the test once, and none that an earlier run stored."""
    found, images = {}, {}
    for name, through in (("whole", None), ("first", LAYER), ("second", LAYER)):
        images_seen.clear()
        ml.train(in_steps(through), out=tmp_path / name)
        found[name] = json.loads((tmp_path / name / "result.json").read_text())
        images[name] = sum(images_seen)
        pretrained._load.cache_clear()
        pretrained._split.cache_clear()
    whole, first, second = found["whole"], found["first"], found["second"]
    assert first["test"]["accuracy"] == pytest.approx(whole["test"]["accuracy"])
    assert second["test"]["accuracy"] == first["test"]["accuracy"]
    assert images["first"] - images["second"] == first["cost"]["setup"]["examples"] > 0
    assert images["first"] < images["whole"] and first["provenance"]["frozen_through"] == LAYER
    assert 0 < first["cost"]["adapt"]["flops"] < whole["cost"]["adapt"]["flops"]
    assert second["cost"]["setup"]["flops"] == second["cost"]["setup"]["examples"] == 0
    (file,) = (tmp_path / "data/features").iterdir()
    with np.load(file) as stored:
        assert len(stored["digests"]) == first["cost"]["setup"]["examples"]


def test_a_start_with_other_frozen_layers_is_refused(tmp_path: Path) -> None:
    trained = in_steps(None)
    trained["run"] |= {"meta_steps": 3, "examples_per_step": 8}
    ml.train(trained, out=tmp_path / "trained")
    ml.train(in_steps(None), out=tmp_path / "public")
    for freezing in ({"frozen_through": LAYER}, {"frozen": True, "frozen_through": None}):
        start = in_steps(LAYER, start=str(tmp_path / "trained"))
        start["model"] |= freezing
        if freezing.get("frozen"):
            start["method"]["adapts"] = "head"
        text = r"changed backbone.body.0.weight, which this model freezes at other values"
        with pytest.raises(ConfigError, match=text):
            ml.train(start, out=tmp_path / f"from-{len(freezing)}")
    ml.train(in_steps(LAYER, start=str(tmp_path / "public")), out=tmp_path / "same")


class Skip(nn.Module):
    """The last layer also uses the output of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        out: Tensor = self.b(z) + z
        return out


class Twice(Skip):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(self.a(x)))
        return out


class Branch(Skip):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x)) if x.sum() > 0 else x
        return out


class Tied(Skip):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


class Position(Tied):
    """Adds a parameter of its own before the first layer, and a constant after the last."""

    def __init__(self) -> None:
        Skip.__init__(self)
        self.place = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.place) + torch.arange(3.0).view(3, 1, 1)


class OfBatch(Tied):
    def __init__(self) -> None:
        Skip.__init__(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class InPlace(Tied):
    def __init__(self) -> None:
        Skip.__init__(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2)).relu_()


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.ReLU(), nn.Tanh()])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts[1](self.parts[0](x)) + x
        return out


FLAT = nn.Sequential(nn.Flatten(0), nn.ReLU())
ONCE = nn.BatchNorm2d(3).eval()


@pytest.mark.parametrize(
    ("net", "layer", "text"),
    [
        (Skip(), "a", None),
        (Skip(), "b", "layers after b also use a: choose an earlier"),
        (nn.Sequential(Skip(), nn.ReLU()), "0", None),
        (nn.Sequential(Skip(), nn.ReLU()), "0.b", "layers after 0.b also use 0.a"),
        (
            nn.Sequential(Skip(), nn.ReLU()),
            "0.c",
            "no layer 'c' in 0; did you mean 'a'|valid: a, b",
        ),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), "0.c", "no layer 'c' in 0; it has no layers"),
        (Twice(), "a", "a is called 2 times, not once"),
        (Listed(), "parts", "parts is not called itself: choose a layer in it"),
        (Listed(), "parts.0", "layers after parts.0 also use the input of the network"),
        (Branch(), "a", "cannot be traced"),
        (FLAT, "0", "is not one tensor with a row per example"),
        (Tied(), "a", "b.weight is used before and after a"),
        (nn.Sequential(ONCE, nn.ReLU(), ONCE), "1", "0.weight is used before and after 1"),
        (Position(), "a", None),
        (OfBatch(), "a", "the layers up to a compute other outputs for an example if others"),
        (InPlace(), "a", None),
    ],
)
def test_a_cut_is_exact_or_refused(net: nn.Module, layer: str, text: str | None) -> None:
    x = uniform(fold_in(0, "x"), (2, 3, 4, 4))
    if text is not None:
        with pytest.raises(ConfigError, match=text):
            split_after(net, layer, x)
        return
    names = dict(net.named_buffers())
    parts = split_after(net, layer, x)
    torch.testing.assert_close(parts.rest(parts.first(x.clone())), net(x.clone()))
    assert not {id(p) for p in parts.rest.parameters()} & {id(p) for p in net.parameters()}
    assert dict(net.named_buffers()) == names and "place" not in dict(parts.rest.named_parameters())


def test_a_network_that_is_built_twice_is_split_once() -> None:
    _, _, one = learners()
    _, _, two = learners()
    assert one.frozen is two.frozen
    names = [set(part.init(fold_in(0, "a"))) for part in (one, two)]
    assert names[0] == names[1]


def test_layers_after_the_cut_may_work_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(size: int, trained: bool) -> nn.Module:
        net = cast(nn.Sequential, tiny_network(size, trained))
        net[2] = nn.ReLU(inplace=True)
        return net

    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, make=in_place))
    component = Pretrained(backbone="tiny", size=16, frozen=False)
    part = component.model_copy(update={"frozen_through": "backbone.body.1"})
    spec = source().spec
    x = uniform(fold_in(0, "x"), (2, *spec.x_shape))
    learned, whole = part.build(spec), component.build(spec)
    outputs = [one.features(one.init(fold_in(0, "a")), x) for one in (learned, whole)]
    torch.testing.assert_close(*outputs)


def test_options_that_contradict_are_refused() -> None:
    def build(layer: str, **options: Any) -> Any:
        options = {"frozen": False, "frozen_through": layer, **options}
        return Pretrained(backbone="tiny", size=16, **options).build(source().spec)

    with pytest.raises(ValueError, match="frozen_through needs frozen: false"):
        build(LAYER, frozen=True)
    text = r"model.frozen_through: no layer '7' in the network; valid: 0, 1, 2, 3, 4, 5"
    with pytest.raises(ConfigError, match=text):
        build("backbone.body.7")
    with pytest.raises(ConfigError, match=r"names start with backbone\.body\."):
        build("2")
    with pytest.raises(ConfigError, match=r"model.statistics: running: no layer after backbone"):
        build("backbone.body.4", statistics="running")
    assert build(LAYER, statistics="running").normalisation == "running"
    with pytest.raises(ConfigError, match=r"backbone.body.0"):
        ml.transfer.FineTune(adapts=["backbone.body.0"]).build(build(LAYER), source().spec)


def test_features_that_depend_on_other_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_batch(size: int, trained: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))

    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, make=of_batch))
    text = "tiny computes other features of an image if others are in its batch"
    with pytest.raises(ConfigError, match=text):
        Pretrained(backbone="tiny", size=16).build(source().spec)


@with_weights
def test_the_last_blocks_of_lite0() -> None:
    spec = EpisodeSpec("classification", 5, 1, 1, (3, 32, 32), 5, 20)
    layer = "backbone.body.net._blocks.14"
    component = Pretrained(backbone=LITE0, size=96, frozen=False, frozen_through=layer)
    learner = component.build(spec)
    params = learner.init(fold_in(0, "start"))
    names = {name.removeprefix("stats.backbone.body.net.") for name in params}
    names = {name.removeprefix("backbone.body.net.") for name in names}
    layers = {name.rpartition(".")[0] for name in names}
    assert {"head", "_conv_head", "_bn1"} <= layers
    assert all(name.startswith("_blocks.15.") for name in layers - {"head", "_conv_head", "_bn1"})
    x = uniform(fold_in(3, "x"), (2, 3, 32, 32))
    frozen = Pretrained(backbone=LITE0, size=96).build(spec)
    torch.testing.assert_close(
        learner.features(params, x), frozen.features({}, x), rtol=1e-4, atol=1e-4
    )
