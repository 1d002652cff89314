"""A public pretrained network, frozen or as the initialization of fine-tuning."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.in_memory import hash_of, name_of
from metalearn.kernels.feature_cache import FrozenNetwork
from metalearn.models.backbones import UNKNOWN, UNKNOWN_OVERLAP, find_backbone
from metalearn.models.external.from_module import from_module
from metalearn.models.frozen_layers import (
    AfterMaps,
    Maps,
    Parts,
    after_frozen,
    are_close,
    split_after,
)
from metalearn.models.init import start
from metalearn.rng import fold_in, uniform
from metalearn.types import EpisodeSpec, Key, Learner, Params

HEAD = ("head.weight", "head.bias")
BODY = "backbone.body."
VERSION = 1  # of how features are computed: stored ones of another version are not used
BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Prepared(nn.Module):
    """Images [B, 1 or 3, H, W] in 0..1, as a backbone takes them, and its features [B, D].

    Bilinear to size x size (with an antialiasing filter where one side is larger), gray repeated to
    three channels, (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, size: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.body, self.size = body, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return pool(self.body(self.prepare(x)))

    def prepare(self, x: Tensor) -> Tensor:
        """Return the images as the body takes them: [B, 3, size, size]."""
        size = (self.size, self.size)
        if tuple(x.shape[-2:]) != size:
            larger = max(x.shape[-2:]) > self.size
            x = F.interpolate(x, size=size, mode="bilinear", antialias=larger)
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        return (x - self.mean) / self.std


def pool(z: Tensor) -> Tensor:
    """Return the mean of maps [B, D, H, W] over places: [B, D]; features [B, D] as they are."""
    return z.mean((-2, -1)) if z.dim() == 4 else z


class Classifier(nn.Module):
    """A backbone and a linear layer."""

    def __init__(self, backbone: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


class Pretrained(ModelComponent):
    """A public pretrained network (EfficientNet-Lite0, any of timm), frozen or fine-tuned.

    Frozen, its weights are no part of what is learned: `features` gives those of the network, and
    the parameters are a head alone. With `frozen: false` all are parameters, which start at the
    pretrained values and keep its names, such as `backbone.body.net._blocks.15`, for `adapts` of
    methods; with `frozen_through` only those of later layers. Images of 1 or 3 channels in 0..1 are
    resized to `size`.

    >>> spec = ml.tasks.Glyphs(ways=5).build().spec
    >>> learner = ml.models.Pretrained(size=64).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 5])
    """

    name: Literal["pretrained"] = option("pretrained", "The model.")
    backbone: str = option("efficientnet_lite0", "A registered backbone, or timm/NAME.")
    weights: str | None = option(
        None, "File with a state dict for this backbone; null: the published weights."
    )
    size: int = option(128, "Height and width to which images are resized.", ge=8, le=1024)
    frozen: bool = option(
        True, "Freeze the network; false: fine-tune it from the pretrained weights."
    )
    frozen_through: str | None = option(
        None,
        "With frozen: false, the last layer that stays frozen, such as "
        "backbone.body.net._blocks.14. fine_tune computes its output once per image.",
        later=True,
    )
    statistics: Literal["frozen", "running"] = option(
        "frozen",
        "Batch-norm statistics when fine-tuning: fixed, or updated in training.",
    )
    pretrain_flops: float | Literal["unknown"] | None = option(
        None,
        "FLOPs of its pretraining; null: as registered for the published weights, else unknown.",
        ge=0,
    )
    pretrain_source: str = option("", "Where that number was published.")

    @model_validator(mode="after")
    def _check(self) -> Pretrained:
        if isinstance(self.pretrain_flops, float) and not self.pretrain_source:
            raise ValueError("pretrain_flops needs pretrain_source: where it was published")
        if self.frozen and self.statistics != "frozen":
            text = f"statistics {self.statistics} need frozen: false"
            raise ValueError(text)
        if self.frozen and self.frozen_through is not None:
            raise ValueError("frozen_through needs frozen: false: frozen freezes all layers")
        return self

    def build(self, spec: EpisodeSpec) -> Learner:
        """Return the learner for images; raises ConfigError for other tasks or missing packages."""
        if len(spec.x_shape) != 3 or spec.x_shape[0] not in (1, 3):
            text = f"needs images of 1 or 3 channels (got {list(spec.x_shape)})"
            raise ConfigError(("model", f"pretrained {text}: use mlp or conv4"))
        prepared, network = self._network(spec.device, spec.dtype)
        if self.frozen:
            return _frozen_learner(prepared, network, spec)
        if self.frozen_through is not None:
            return self._partly_frozen(prepared, network, spec)
        return self._trainable(copy.deepcopy(prepared), network.width, spec)

    def _trainable(self, backbone: nn.Module, width: int, spec: EpisodeSpec) -> Learner:
        module = Classifier(backbone, width, spec.outputs)
        module.requires_grad_(True).eval()
        fixed = self.statistics == "frozen" and not _has_batch_norm(module)  # no policy to state
        policy = None if fixed else self.statistics
        return from_module(module, spec, head="new", policy=policy, keep=True)

    def _partly_frozen(self, whole: Prepared, network: FrozenNetwork, spec: EpisodeSpec) -> Learner:
        frozen, parts = _split(whole, network, str(self.frozen_through))
        rest = copy.deepcopy(AfterMaps(parts.rest, parts.shape, pool))
        if self.statistics != "frozen" and not _has_batch_norm(rest):
            text = f"{self.statistics}: no layer after {self.frozen_through} is batch normalisation"
            raise ConfigError(("model.statistics", text))
        learner = self._trainable(rest, network.width, replace(spec, x_shape=(frozen.width,)))
        if learner.normalisation == "none" and _has_batch_norm(whole):
            learner = learner._replace(normalisation="frozen")

        def module(params: Params) -> nn.Module:
            net = Classifier(copy.deepcopy(whole), network.width, spec.outputs)
            assert learner.module is not None
            net.load_state_dict(learner.module(params).state_dict(), strict=False)
            return net.to(spec.device, spec.dtype).eval()

        fixed = tuple(f"{BODY}{name}" for name, _ in parts.first.named_parameters())
        return after_frozen(learner, frozen, spec.x_shape, fixed, module)

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts that a report states about a network that was trained elsewhere."""
        backbone, (prepared, _) = find_backbone(self.backbone), self._network("cpu", torch.float32)
        if self.weights is not None:  # what is registered holds for the published weights
            backbone = replace(
                backbone, licence=UNKNOWN, trained_on=UNKNOWN, overlap=UNKNOWN_OVERLAP
            )
            backbone = replace(backbone, flops=UNKNOWN, source="")
        is_overridden = self.pretrain_flops is not None
        return {
            "backbone": self.backbone,
            "weights": self.weights or "published",
            "weights_sha256": hash_of(prepared.body.state_dict()),
            "licence": backbone.licence,
            "trained_on": backbone.trained_on,
            "parameters": sum(value.numel() for value in prepared.body.parameters()),
            "overlap": backbone.overlap,
            "size": self.size,
            "frozen": self.frozen,
            **({} if self.frozen_through is None else {"frozen_through": self.frozen_through}),
            "pretrain_flops": self.pretrain_flops if is_overridden else backbone.flops,
            "pretrain_source": self.pretrain_source if is_overridden else backbone.source,
        }

    def _network(self, device: str, dtype: torch.dtype) -> tuple[Prepared, FrozenNetwork]:
        changed = 0 if self.weights is None else _modification_time(Path(self.weights))
        return _load(self.backbone, self.weights, changed, self.size, device, dtype)


@lru_cache(maxsize=4)
def _load(
    name: str, weights: str | None, changed: int, size: int, device: str, dtype: torch.dtype
) -> tuple[Prepared, FrozenNetwork]:
    """Load the network of a backbone, once per process."""
    del changed  # part of the key only
    backbone = find_backbone(name)
    body = backbone.make(size, weights is None)
    if weights is not None:
        _load_weights(body, Path(weights), backbone.classifier)
    prepared = Prepared(body, size, backbone.mean, backbone.std).to(device, dtype)
    prepared.requires_grad_(False).eval()
    with torch.no_grad():
        images = _images(prepared)
        z = prepared(images)
        if not are_close(prepared(images[:1]), z[:1]):
            text = f"{name} computes other features of an image if others are in its batch"
            raise ConfigError(("model.backbone", f"{text}: it cannot be frozen"))
    return prepared, FrozenNetwork(prepared, int(z.shape[-1]), _hash_network(prepared))


@lru_cache(maxsize=4)
def _split(prepared: Prepared, network: FrozenNetwork, layer: str) -> tuple[FrozenNetwork, Parts]:
    """Split a network, once per process, so that all learners look up the same stored outputs."""
    if not layer.startswith(BODY):
        text = f"{layer!r} is not a layer of the network: names start with {BODY}"
        raise ConfigError(("model.frozen_through", text))
    try:
        images = prepared.prepare(_images(prepared))
        parts = split_after(prepared.body, layer.removeprefix(BODY), images)
    except ConfigError as error:
        raise ConfigError(("model.frozen_through", error.problems[0][1])) from error
    sha256 = hash_of((network.sha256, layer))
    return FrozenNetwork(Maps(prepared.prepare, parts.first), prod(parts.shape), sha256), parts


def _images(prepared: Prepared) -> Tensor:
    """Return two images [2, 3, size, size] on which parts of a network are compared."""
    shape = (2, 3, prepared.size, prepared.size)
    return uniform(fold_in(0, "images"), shape).to(prepared.mean)


def _hash_network(prepared: Prepared) -> str:
    """Return the SHA-256 of weights, buffers and the code of every layer."""
    kinds = {kind for part in prepared.modules() for kind in type(part).__mro__}
    code = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    buffers, versions = dict(prepared.named_buffers()), (VERSION, torch.__version__)
    return hash_of((*versions, prepared.size, prepared, buffers, sorted(code, key=name_of)))


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, BATCH_NORM) for part in module.modules())


def _modification_time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(("model.weights", f"cannot be read: {error}")) from error


def _load_weights(body: nn.Module, path: Path, classifier: tuple[str, ...]) -> None:
    """Fill the network from a file of `torch.save(net.state_dict(), path)`.

    The file may hold the layers of the `classifier`, which are not used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways
        text = f"{path} is not a state dict of torch.save(net.state_dict(), path): {error}"
        raise ConfigError(("model.weights", text)) from error
    network = getattr(body, "net", body)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(("model.weights", f"{path} does not fit: {error}")) from error
    unexpected = [
        name for name in unexpected if not name.startswith(tuple(f"{c}." for c in classifier))
    ]
    if unexpected:
        text = f"{path} has tensors that the backbone lacks, such as {unexpected[0]}"
        raise ConfigError(("model.weights", f"{text}: it belongs to another network"))
    if missing:
        text = f"{path} lacks {len(missing)} tensors of the backbone, such as {missing[0]}"
        raise ConfigError(("model.weights", text))


def _frozen_learner(prepared: Prepared, network: FrozenNetwork, spec: EpisodeSpec) -> Learner:
    layer = nn.Linear(network.width, spec.outputs, device="meta", dtype=spec.dtype)

    shapes = {HEAD[0]: (spec.outputs, network.width), HEAD[1]: (spec.outputs,)}

    def init(key: Key) -> Params:
        return {
            leaf: start(key, leaf, layer, shape, "uniform", spec.dtype).to(spec.device)
            for leaf, shape in shapes.items()
        }

    def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return network(x)

    def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        return F.linear(network(x), params["head.weight"], params["head.bias"])

    def module(params: Params) -> nn.Module:
        own = copy.deepcopy(prepared)  # the caller may change it
        whole = Classifier(own, network.width, spec.outputs).to(spec.device, spec.dtype)
        whole.load_state_dict({leaf: params[leaf] for leaf in HEAD}, strict=False)
        return whole.eval()

    return Learner(
        init=init,
        features=features,
        apply=apply,
        stats=lambda params, x: params,
        normalisation="frozen" if _has_batch_norm(prepared) else "none",
        outputs=spec.outputs,
        x_shape=spec.x_shape,
        fixed=tuple(f"backbone.{name}" for name, _ in prepared.named_parameters()),
        random_start=False,
        module=module,
        frozen=network,
    )
