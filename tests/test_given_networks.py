"""Networks that were trained elsewhere: weights, code, and the methods that take them."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_pretrained import TINY, experiment, source, tiny, tiny_network
from torch import Tensor, nn
from torch.nn import functional as F

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.models import Pretrained, pretrained
from metalearn.models.backbones import BACKBONES, UNKNOWN
from metalearn.rng import fold_in, uniform

__all__ = ["tiny"]  # the fixture
PRICE: dict[str, Any] = {"pretrain_flops": 1e15, "pretrain_source": "a paper"}


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def test_a_change_of_the_module_leaves_the_learner_alone() -> None:
    tasks = source()
    learner = Pretrained(backbone="tiny", size=16).build(tasks.spec)
    x = tasks.examples(fold_in(2, "x"), 4).x
    before = learner.features({}, x)
    assert learner.module is not None
    module = learner.module(learner.init(fold_in(0, "start"))).train()
    with torch.no_grad():
        for leaf in (*module.parameters(), *module.buffers()):
            leaf.fill_(1)
    torch.testing.assert_close(learner.features({}, x), before, rtol=0, atol=0)


CODE = """
from torch import nn

class Layer(nn.Module):
    def forward(self, x):
        return x.mean((-2, -1)) * {factor}
"""


def test_features_of_another_code_have_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for factor in ("2", "10"):
        (tmp_path / "net_code.py").write_text(CODE.format(factor=factor))
        spec = importlib.util.spec_from_file_location("net_code", tmp_path / "net_code.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "net_code", module)
        spec.loader.exec_module(module)
        for constant in (0.0, 1.0):
            layer = module.Layer()
            layer.register_buffer("shift", torch.tensor(constant), persistent=False)
            made = replace(TINY, make=lambda size, trained, layer=layer: layer)
            monkeypatch.setitem(BACKBONES, "tiny", made)
            pretrained._load.cache_clear()
            network = Pretrained(backbone="tiny", size=16).build(source().spec).frozen
            assert network is not None
            found.append(network.sha256)
    assert len(set(found)) == 4


def test_a_file_of_another_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, state = tmp_path / "mine.pt", tiny_network(16, False).state_dict()
    component, spec = Pretrained(backbone="tiny", size=16, weights=str(file)), source().spec
    torch.save({**state, "6.weight": torch.zeros(7, 5)}, file)
    with pytest.raises(ConfigError, match=r"tensors that the backbone lacks, such as 6\.weight"):
        component.build(spec)
    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, classifier=("6",)))
    component.build(spec)


def test_nothing_is_known_of_the_users_weights_but_what_is_declared(tmp_path: Path) -> None:
    torch.save(tiny_network(16, False).state_dict(), tmp_path / "mine.pt")
    facts: dict[str, Any] = {"backbone": "tiny", "size": 16, "weights": str(tmp_path / "mine.pt")}
    found = Pretrained(**facts).provenance
    names = ("licence", "trained_on", "pretrain_flops")
    assert {found[name] for name in names} == {UNKNOWN} and found["overlap"].startswith(UNKNOWN)
    assert found["pretrain_source"] == ""
    assert Pretrained(**facts, **PRICE).provenance["pretrain_flops"] == 1e15


def plain_network(size: int, trained: bool) -> nn.Module:
    """No normalisation, and no dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())


def test_a_network_without_batch_norm_is_fine_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", replace(TINY, make=plain_network))
    component = Pretrained(backbone="tiny", size=16, frozen=False)
    learner = component.build(source().spec)
    assert learner.normalisation == "none"
    with pytest.raises(ConfigError, match="running needs a batch normalisation layer"):
        component.model_copy(update={"statistics": "running"}).build(source().spec)


@pytest.mark.parametrize("name", ["metaopt_net", "metaopt_svm", "relation_net", "meta_baseline"])
def test_metric_methods_take_a_frozen_network(name: str, tmp_path: Path) -> None:
    data = experiment()
    data |= {"method": {"name": name}}
    data["run"] |= {"meta_steps": 1, "tasks_per_step": 2}
    ml.train(data, out=tmp_path / "run")
    found = result_of(tmp_path / "run")
    assert found["test"]["diverged"] == [0] and found["cost"]["meta_train"]["tasks"] == 2
    ml.load_run(tmp_path / "run")


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_images_that_are_larger_on_one_side_are_filtered(shape: tuple[int, int]) -> None:
    prepared = pretrained.Prepared(nn.Identity(), 16, (0.0,) * 3, (1.0,) * 3)
    seen: list[Tensor] = []
    prepared.body.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    x = uniform(fold_in(4, "x"), (2, 3, *shape))
    prepared(x)
    expected = F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[0], expected)


def test_a_download_of_timm_that_fails_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **options: Any) -> nn.Module:
        if "img_size" in options:
            raise TypeError("unexpected keyword img_size")
        raise OSError("no network")

    timm = ModuleType("timm")
    facts = {"is_model": lambda name: True, "create_model": create_model}
    vars(timm).update(facts, get_pretrained_cfg=lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(ConfigError, match="could not load the weights of resnet18: no network"):
        Pretrained(backbone="timm/resnet18").build(source().spec)
