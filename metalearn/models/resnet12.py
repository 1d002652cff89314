"""ResNet-12: the field's large network (Oreshkin et al. 2018; Lee et al. 2019)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import noise, rng
from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.kernels import native
from metalearn.kernels.conv import conv2d
from metalearn.models.conv4 import pool
from metalearn.models.functional import module_learner
from metalearn.models.norm import RUNNING, Norm, Policy
from metalearn.types import EpisodeSpec, Learner

SLOPE = 0.1  # of the leaky ReLU below zero
Width = Annotated[int, Field(ge=1, le=4096)]


class Convolution(nn.Module):
    """A convolution without bias and its normalisation, channels last."""

    def __init__(self, inputs: int, outputs: int, size: int, norm: Policy) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=norm == "none")
        self.norm = Norm(outputs, norm, channels_last=True) if norm != "none" else None

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = conv2d(x, self.conv.weight, self.conv.bias)
        return z if self.norm is None else self.norm(z, rows)


class Block(nn.Module):
    """Three 3 x 3 convolutions beside a 1 x 1 convolution, then 2 x 2 maxima."""

    def __init__(self, inputs: int, outputs: int, norm: Policy) -> None:
        super().__init__()
        sizes = (inputs, outputs, outputs)
        self.convs = nn.ModuleList(Convolution(size, outputs, 3, norm) for size in sizes)
        self.shortcut = Convolution(inputs, outputs, 1, norm)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = x
        for place, conv in enumerate(self.convs):
            z = conv(z, rows)
            if place < 2:
                z = F.leaky_relu(z, SLOPE)
        return pool(F.leaky_relu(z + self.shortcut(x, rows), SLOPE))


class ResNet(nn.Module):
    """Four blocks, the mean over places or all of them, then the head."""

    def __init__(self, x_shape: tuple[int, ...], component: ResNet12, outputs: int) -> None:
        super().__init__()
        native.kernel()  # built here, once, and not inside a compiled step
        widths, norm = component.widths, component.norm
        sizes = zip((x_shape[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.ModuleList(Block(inputs, outputs, norm) for inputs, outputs in sizes)
        self.drop, self.size, self.flatten = component.drop, component.block, component.flatten
        places = (x_shape[1] // 16) * (x_shape[2] // 16) if component.flatten else 1
        self.head = nn.Linear(widths[-1] * places, outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = x.permute(0, 2, 3, 1)
        for place, block in enumerate(self.blocks):
            z = block(z, rows)
            if self.drop and noise.is_active():
                z = drop_blocks(z, self.drop, self.size if place > 1 else 1)
        z = z.permute(0, 3, 1, 2).flatten(1) if self.flatten else z.mean((1, 2))
        out: Tensor = self.head(z)
        return out


def drop_blocks(x: Tensor, share: float, size: int) -> Tensor:
    """DropBlock (Ghiasi et al. 2018, arXiv:1810.12890, algorithm 1), by the key of the open scope.

    x [B, H, W, C]; squares of `size` places are zero, about `share` of all, drawn for each channel;
    the rest is scaled up to the same mean. `size` 1 is dropout."""
    height, width = x.shape[1:3]
    size = min(size, height, width)
    inner = (height - size + 1, width - size + 1)
    gamma = share * height * width / (size**2 * inner[0] * inner[1])  # equation 1
    draws = rng.uniform(noise.next_key(), (x.shape[0], x.shape[3], *inner), dtype=x.dtype)
    corners = F.pad((draws < gamma).to(x.dtype), [size - 1] * 4)
    kept = 1 - F.max_pool2d(corners, size, stride=1).permute(0, 2, 3, 1)
    return x * kept * (kept.numel() / kept.sum().clamp(min=1))


class ResNet12(ModelComponent):
    """ResNet-12: four residual blocks of three convolutions, with DropBlock in training.

    64, 160, 320 and 640 channels (Lee et al. 2019; Tian et al. 2020), or 64, 128, 256 and 512
    (Oreshkin et al. 2018). Dropout follows the first two blocks, DropBlock the others.

    >>> spec = ml.tasks.Glyphs(ways=5).build().spec
    >>> learner = ml.models.ResNet12(widths=(8, 8, 16, 16), block=2).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 5])
    """

    # Departures: the share that is dropped is constant, where the authors raise it over training;
    # noise is drawn in training steps alone, never on new tasks.
    name: Literal["resnet12"] = option("resnet12", "The model.")
    widths: tuple[Width, Width, Width, Width] = option(
        (64, 160, 320, 640), "Channels of each block."
    )
    drop: float = option(
        0.1, "Drop rate of dropout and DropBlock in training; 0: none.", acts="train", ge=0, lt=1
    )
    block: int = option(
        5, "Block size of DropBlock: 5 for 84 pixels, 2 for 32.", acts="train", ge=1
    )
    flatten: bool = option(False, "Flatten the last feature map instead of averaging it.")
    norm: Policy = option("query_batch", f"Normalisation policy of each convolution; {RUNNING}")

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for image tasks [channels, H, W] of `spec`, at least 16 x 16."""
        if len(spec.x_shape) != 3 or min(spec.x_shape[1:]) < 16:
            text = f"needs images [channels, H, W] of at least 16 x 16 (got {list(spec.x_shape)})"
            raise ConfigError(("model", f"resnet12 {text}"))
        learner = module_learner(
            lambda: ResNet(spec.x_shape, self, spec.outputs), spec, policy=self.norm, init="xavier"
        )
        return learner._replace(draws_noise=self.drop > 0)
