"""Pretrained networks whose first layers stay frozen: `frozen_through` of the model pretrained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import LITE0, TINY, experiment, source, tiny_network, with_weights
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


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    yield
    pretrained._load.cache_clear()


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


def test_the_frozen_layers_see_an_image_of_a_task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    def counted(size: int, trained: bool) -> nn.Module:
        net = tiny_network(size, trained)
        net[0] = Counted(3, 6, 3, stride=2)  # type: ignore[index]
        return net

    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, make=counted))
    tasks, _, part = learners()
    built = ml.transfer.FineTune(adapts=LAST).build(part, tasks.spec)
    meta, episode = built.init(fold_in(0, "init")).meta, tasks.sample(fold_in(1, "x"), 1)
    seen.clear()
    built.learn(meta, episode.support, episode.query.x, (0, 1, 5), key=episode.info["key"])
    assert sorted(seen) == [6, 6]  # 3 classes with 2 examples, and 2 queries each


def test_a_run_stores_the_outputs_and_counts_the_network_once(tmp_path: Path) -> None:
    found = {}
    for through in (None, LAYER):
        config = experiment(name="fine_tune", adapts=LAST, inner_lr=0.05)
        config["model"] |= {"frozen": False, "frozen_through": through}
        config["evaluate"] |= {"steps": [0, 1, 5], "headline_step": 5}
        ml.train(config, out=tmp_path / str(through))
        found[through] = json.loads((tmp_path / str(through) / "result.json").read_text())
    whole, part = found[None], found[LAYER]
    assert part["test"]["accuracy"] == pytest.approx(whole["test"]["accuracy"])
    assert part["cost"]["setup"]["examples"] > 0 and part["provenance"]["frozen_through"] == LAYER
    assert 0 < part["cost"]["adapt"]["flops"] < whole["cost"]["adapt"]["flops"]
    assert list((tmp_path / "data/features").iterdir())


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


@pytest.mark.parametrize(
    ("net", "layer", "text"),
    [
        (Skip(), "b", None),
        (Skip(), "a", None),
        (nn.Sequential(Skip(), nn.ReLU()), "0.b", "use the output of 0.a, too"),
        (nn.Sequential(Skip(), nn.ReLU()), "0", None),
        (Skip(), "c", "no layer 'c'"),
        (Twice(), "a", "a is called 2 times, not once"),
        (Branch(), "a", "cannot be traced"),
        (nn.Sequential(nn.Flatten(0), nn.ReLU()), "0", "is not one tensor with a row per example"),
    ],
)
def test_a_cut_is_exact_or_refused(net: nn.Module, layer: str, text: str | None) -> None:
    x = uniform(fold_in(0, "x"), (2, 3, 4, 4))
    if layer == "b":  # the sum after it needs the first output
        text = "use the output of a, too"
    if text is None:
        parts = split_after(net, layer, x)
        torch.testing.assert_close(parts.rest(parts.first(x)), net(x))
        assert not {id(p) for p in parts.rest.parameters()} & {id(p) for p in net.parameters()}
        return
    with pytest.raises(ConfigError, match=text):
        split_after(net, layer, x)


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen_through needs frozen: false"):
        Pretrained(backbone="tiny", frozen_through=LAYER)
    with pytest.raises(ConfigError, match=r"model.frozen_through: no layer '7'") as error:
        Pretrained(backbone="tiny", frozen=False, frozen_through="7").build(source().spec)
    assert error.value.problems[0][0] == "model.frozen_through"
    _, _, part = learners()
    with pytest.raises(ConfigError, match=r"backbone.body.0"):
        ml.transfer.FineTune(adapts=["backbone.body.0"]).build(part, source().spec)


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
