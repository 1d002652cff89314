"""Conv4 in other sizes: widths, normalisation and head are searched, the wiring is fixed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.kernels import native
from metalearn.models.conv4 import BLOCKS, pool
from metalearn.models.norm import Norm, Policy
from metalearn.nas.spaces.cells import DOWNSAMPLE, Downsample, check_images
from metalearn.nas.spaces.ops import Masks, conv2d, layer_norm, width_mask
from metalearn.nas.spaces.space import Genotype, Place, Space, SpaceComponent, make_space
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
    """Convolution and normalisation of a chosen width, or of the largest width under a mask."""

    def __init__(
        self, inputs: int, filters: int, stride: int, kind: str | None, policy: Policy
    ) -> None:
        super().__init__()
        native.kernel()  # compiles the operators here, once, and not inside a compiled step
        self.kind, self.stride = kind, stride
        self.conv = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1)
        self.batch = Norm(filters, policy, channels_last=True) if kind in (None, "batch") else None
        # One group: more would leave a single number to normalise in maps of 8 channels and 1 x 1.
        self.group = nn.GroupNorm(1, filters) if kind in (None, "group") else None

    def forward(
        self,
        x: Tensor,
        norm_weights: Tensor | None,
        mask: Tensor | None,
        rows: int | None,
    ) -> Tensor:
        """[B, H, W, C] -> [B, Ho, Wo, F]; weights of the normalisations [3], channel mask [F]."""
        assert self.conv.bias is not None
        z = conv2d(x, self.conv.weight, self.conv.bias, self.stride)
        z = z if mask is None else z * mask
        outputs = {
            "batch": None if self.batch is None else self.batch(z, rows),
            "group": None
            if self.group is None
            else layer_norm(z, self.group.weight, self.group.bias, mask),
            "none": z,
        }
        if self.kind is not None:
            chosen = outputs[self.kind]
            assert chosen is not None
            return F.relu(chosen)
        assert norm_weights is not None and mask is not None
        total = torch.zeros_like(z)
        for weight, name in zip(norm_weights, NORMS):
            part = outputs[name]
            assert part is not None
            total = total + weight * part
        return F.relu(total) * mask


class SizeNet(nn.Module):
    """Four blocks and a head; `genotype` None: the supernet, the largest sizes with masks."""

    def __init__(
        self, spec: EpisodeSpec, downsample: Downsample, genotype: Genotype | None, policy: Policy
    ) -> None:
        super().__init__()
        self.pooled = downsample == "pool"
        if genotype is None:
            widths = [WIDTHS[-1]] * BLOCKS
        else:
            widths = [WIDTHS[choice] for choice in genotype[:BLOCKS]]
        kind = None if genotype is None else NORMS[genotype[BLOCKS]]
        self.flatten = None if genotype is None else HEADS[genotype[-1]] == "flatten"
        inputs = (spec.x_shape[0], *widths)
        self.blocks = nn.ModuleList(
            Block(inputs[block], widths[block], 1 if self.pooled else 2, kind, policy)
            for block in range(BLOCKS)
        )
        self.mask = Masks(PLACES) if genotype is None else None
        area = 1 if self.flatten is False else last_area(spec, downsample)
        self.head = nn.Linear(widths[-1] * area, spec.outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = x.permute(0, 2, 3, 1)
        for number, block in enumerate(self.blocks):
            widths = None if self.mask is None else self.mask.of(f"width{number}")
            mask = None if widths is None else width_mask(widths, WIDTHS, z)
            z = block(z, None if self.mask is None else self.mask.of("norm"), mask, rows)
            z = pool(z) if self.pooled else z
        flat, mean = z.permute(0, 3, 1, 2).flatten(1), z.mean((1, 2))
        if self.mask is None:
            features = flat if self.flatten else mean
        else:  # the mean's features are padded to the length of the flattened ones
            weight = self.mask.of("head")
            features = weight[0] * flat + weight[1] * F.pad(
                mean, (0, flat.shape[1] - mean.shape[1])
            )
        out: Tensor = self.head(features)
        return out


def last_area(spec: EpisodeSpec, downsample: Downsample) -> int:
    """Return the number of pixels of the last feature map."""
    height, width = spec.x_shape[1:]
    for _ in range(BLOCKS):
        if downsample == "pool":
            height, width = height // 2, width // 2
        else:
            height, width = (height + 1) // 2, (width + 1) // 2
    return height * width


class Conv4Size(SpaceComponent):
    """Conv4 with 8 to 64 channels per block, three normalisations and two heads: 1,536 networks.

    Normalisation is by batch statistics, by group statistics, or none.

    >>> space = ml.nas.Conv4Size().build(ml.tasks.Glyphs().build().spec, "query_batch")
    >>> space.size
    1536
    """

    name: Literal["conv4-size"] = option("conv4-size", "The space.")
    downsample: Downsample = option("stride", DOWNSAMPLE)

    def build(self, spec: EpisodeSpec, policy: Policy = "query_batch") -> Space:
        """The space for image tasks; `policy` is that of `batch`. Raises ConfigError."""
        check_images(self.name, spec, self.downsample)
        if policy == "none":
            text = (
                "is none, but conv4-size searches the normalisation: "
                "set the policy of the choice `batch`, such as query_batch"
            )
            raise ConfigError(("model.norm", text))
        one_pixel = last_area(spec, self.downsample) == 1
        mean = HEADS.index("mean")

        def canonical(genotype: Genotype) -> Genotype:
            return (*genotype[:-1], mean) if one_pixel else genotype

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
