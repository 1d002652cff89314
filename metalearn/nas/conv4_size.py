"""The body of Conv4 in other sizes: widths, normalisation and head are searched, the wiring
stands.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.component import Component, option
from metalearn.errors import ConfigError
from metalearn.kernels import native
from metalearn.models.conv4 import BLOCKS, pool
from metalearn.models.norm import Moments, Norm, Policy
from metalearn.nas.cells import Downsample
from metalearn.nas.ops import Masks, conv2d, layer_norm
from metalearn.nas.space import Genotype, Place, Space, make_space
from metalearn.types import EpisodeSpec

WIDTHS = (8, 16, 32, 64)
NORMS = ("batch", "group", "none")
HEADS = ("flatten", "mean")
PLACES = (
    *(Place(f"width{block}", tuple(map(str, WIDTHS))) for block in range(BLOCKS)),
    Place("norm", NORMS),
    Place("head", HEADS),
)


class Block(nn.Module):
    """Convolution and normalisation of a chosen width, or of the widest, of which a mask leaves
    some.
    """

    def __init__(
        self, inputs: int, filters: int, stride: int, kind: str | None, policy: Policy
    ) -> None:
        super().__init__()
        native.kernel()  # built here, once, and not inside a compiled step
        self.kind, self.stride = kind, stride
        self.conv = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1)
        self.batch = Norm(filters, policy, channels_last=True) if kind in (None, "batch") else None
        # One group: with 8 channels and maps of 1 x 1 more groups would leave a single number to
        # normalise.
        self.group = nn.GroupNorm(1, filters) if kind in (None, "group") else None

    def forward(
        self,
        x: Tensor,
        which: Tensor | None,
        mask: Tensor | None,
        rows: int | None,
        seen: Moments | None,
    ) -> Tensor:
        """[B, H, W, C] -> [B, Ho, Wo, F]; `which` [3] weighs the normalisations, `mask` [F] the
        channels.
        """
        assert self.conv.bias is not None
        z = conv2d(x, self.conv.weight, self.conv.bias, self.stride)
        z = z if mask is None else z * mask
        made = {
            "batch": None if self.batch is None else self.batch(z, rows, seen),
            "group": None
            if self.group is None
            else layer_norm(z, self.group.weight, self.group.bias, mask),
            "none": z,
        }
        if self.kind is not None:
            chosen = made[self.kind]
            assert chosen is not None
            return F.relu(chosen)
        assert which is not None and mask is not None
        total = torch.zeros_like(z)
        for weight, name in zip(which, NORMS):
            part = made[name]
            assert part is not None
            total = total + weight * part
        return F.relu(total) * mask


class SizeNet(nn.Module):
    """Four blocks and a head; `genotype` None: the widest of everything, with masks."""

    def __init__(
        self, spec: EpisodeSpec, downsample: Downsample, genotype: Genotype | None, policy: Policy
    ) -> None:
        super().__init__()
        self.pooled = downsample == "pool"
        widths = (
            [WIDTHS[-1]] * BLOCKS
            if genotype is None
            else [WIDTHS[choice] for choice in genotype[:BLOCKS]]
        )
        kind = None if genotype is None else NORMS[genotype[BLOCKS]]
        self.flatten = None if genotype is None else HEADS[genotype[-1]] == "flatten"
        inputs = (spec.x_shape[0], *widths)
        self.blocks = nn.ModuleList(
            Block(inputs[block], widths[block], 1 if self.pooled else 2, kind, policy)
            for block in range(BLOCKS)
        )
        self.mask = (
            Masks({place.name: len(place.words) for place in PLACES}) if genotype is None else None
        )
        area = 1 if self.flatten is False else last_area(spec, downsample)
        self.head = nn.Linear(widths[-1] * area, spec.outputs)

    def forward(self, x: Tensor, rows: int | None = None, seen: Moments | None = None) -> Tensor:
        z = x.permute(0, 2, 3, 1)
        for number, block in enumerate(self.blocks):
            mask = None if self.mask is None else channels(self.mask.of(f"width{number}"), z)
            z = block(z, None if self.mask is None else self.mask.of("norm"), mask, rows, seen)
            z = pool(z) if self.pooled else z
        flat, mean = z.permute(0, 3, 1, 2).flatten(1), z.mean((1, 2))
        if self.mask is None:
            features = flat if self.flatten else mean
        else:  # the mean's features take the first places of the longer row
            weight = self.mask.of("head")
            features = weight[0] * flat + weight[1] * F.pad(
                mean, (0, flat.shape[1] - mean.shape[1])
            )
        out: Tensor = self.head(features)
        return out


def channels(weights: Tensor, like: Tensor) -> Tensor:
    """How far each of the widest network's channels exists: weights [4] of the widths -> [64]."""
    here = torch.arange(WIDTHS[-1], device=like.device) < torch.tensor(
        WIDTHS, device=like.device
    ).unsqueeze(-1)
    return weights @ here.to(like.dtype)


def last_area(spec: EpisodeSpec, downsample: Downsample) -> int:
    """Places of the last map."""
    height, width = spec.x_shape[1:]
    for _ in range(BLOCKS):
        height, width = (
            (height // 2, width // 2)
            if downsample == "pool"
            else ((height + 1) // 2, (width + 1) // 2)
        )
    return height * width


class Conv4Size(Component):
    """Conv4 with 8 to 64 channels a block, batch, group or no normalisation, and two heads:
    1,536.
    """

    name: Literal["conv4-size"] = option("conv4-size", "the space")
    downsample: Downsample = option(
        "stride", "halve by strides or by 2 x 2 max-pooling, as Conv4's field"
    )

    def build(self, spec: EpisodeSpec, policy: Policy = "query_batch") -> Space:
        """The space for image tasks of `spec`; `batch` normalises by `policy`. ConfigError for
        other tasks.
        """
        if len(spec.x_shape) != 3:
            text = (
                f"{self.name} needs images [channels, H, W], this task gives "
                f"{list(spec.x_shape)}: use mlp-reg"
            )
            raise ConfigError(("method.space", text))
        if self.downsample == "pool" and min(spec.x_shape[1:]) < 2**BLOCKS:
            text = (
                f"pooling four times needs at least 16 x 16, this task gives "
                f"{list(spec.x_shape)}: use stride"
            )
            raise ConfigError(("method.space.downsample", text))
        if policy == "none":
            text = (
                "is none, but conv4-size searches the normalisation: say whose statistics "
                "`batch` uses (query_batch)"
            )
            raise ConfigError(("model.norm", text))
        one_place = last_area(spec, self.downsample) == 1
        mean = HEADS.index("mean")

        def canonical(genotype: Genotype) -> Genotype:
            return (*genotype[:-1], mean) if one_place else genotype

        default = (*(len(WIDTHS) - 1,) * BLOCKS, NORMS.index("batch"), mean)
        return make_space(
            self.name,
            spec,
            PLACES,
            canonical,
            lambda genotype: SizeNet(spec, self.downsample, genotype, policy),
            default,
            policy,
            "xavier",
        )
