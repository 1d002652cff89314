"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146, table 1)."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import noise
from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.kernels import native
from metalearn.kernels.conv import conv2d
from metalearn.models.functional import module_learner
from metalearn.models.norm import RUNNING, Norm, Policy
from metalearn.models.resnet12 import drop_blocks
from metalearn.types import EpisodeSpec, Learner

STEM, GROUPS = 16, 3  # channels before the first group; groups of blocks


class Before(nn.Module):
    """Normalisation, ReLU, then a convolution without bias, channels last."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Policy) -> None:
        super().__init__()
        self.stride = stride
        self.norm = Norm(inputs, norm, channels_last=True) if norm != "none" else None
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)

    def active(self, x: Tensor, rows: int | None) -> Tensor:
        return F.relu(x if self.norm is None else self.norm(x, rows))


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions beside the input, by a 1 x 1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: float, norm: Policy) -> None:
        super().__init__()
        self.drop, self.stride = drop, stride
        self.first = Before(inputs, outputs, stride, norm)
        self.second = Before(outputs, outputs, 1, norm)
        changes = inputs != outputs or stride > 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        active = self.first.active(x, rows)
        z = self.second.active(conv2d(active, self.first.conv.weight, None, self.stride), rows)
        if self.drop and noise.is_active():
            z = drop_blocks(z, self.drop, 1)
        z = conv2d(z, self.second.conv.weight, None)
        if self.shortcut is None:
            return x + z
        return z + conv2d(active, self.shortcut.weight, None, self.stride)


class WideNet(nn.Module):
    """A convolution, three groups of blocks, normalisation, ReLU, the mean, then the head."""

    def __init__(self, channels: int, component: WideResNet, outputs: int) -> None:
        super().__init__()
        native.kernel()  # built here, once, and not inside a compiled step
        norm, blocks = component.norm, (component.depth - 4) // (2 * GROUPS)
        self.stem = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
        self.blocks, inputs = nn.ModuleList(), STEM
        for group in range(GROUPS):
            width = STEM * component.width * 2**group
            for place in range(blocks):
                stride = 2 if group > 0 and place == 0 else 1
                self.blocks.append(WideBlock(inputs, width, stride, component.drop, norm))
                inputs = width
        self.norm = Norm(inputs, norm, channels_last=True) if norm != "none" else None
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = conv2d(x.permute(0, 2, 3, 1), self.stem.weight, None)
        for block in self.blocks:
            z = block(z, rows)
        z = F.relu(z if self.norm is None else self.norm(z, rows)).mean((1, 2))
        out: Tensor = self.head(z)
        return out


class WideResNet(ModelComponent):
    """A wide residual network; its defaults are WRN-28-10, with 36.5 million parameters.

    >>> spec = ml.tasks.Glyphs(ways=5).build().spec
    >>> learner = ml.models.WideResNet(depth=10, width=1).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 5])
    """

    name: Literal["wide_resnet"] = option("wide_resnet", "The model.")
    depth: int = option(28, "Number of convolutions, 6 n + 4.", ge=10, le=1000)
    width: int = option(10, "Widening factor k of the channels 16, 32 and 64.", ge=1, le=64)
    drop: float = option(0.0, "Dropout rate inside a block in training.", acts="train", ge=0, lt=1)
    norm: Policy = option(
        "query_batch", f"Normalisation policy of each convolution's input; {RUNNING}"
    )

    @field_validator("depth")
    @classmethod
    def _check_depth(cls, depth: int) -> int:
        if (depth - 4) % (2 * GROUPS):
            raise ValueError(f"depth must be 6 n + 4, such as 10, 16, 28 or 40 (got {depth})")
        return depth

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for image tasks [channels, H, W] of `spec`, at least 4 x 4."""
        if len(spec.x_shape) != 3 or min(spec.x_shape[1:]) < 4:
            text = f"needs images [channels, H, W] of at least 4 x 4 (got {list(spec.x_shape)})"
            raise ConfigError(("model", f"wide_resnet {text}"))
        channels = spec.x_shape[0]
        learner = module_learner(
            lambda: WideNet(channels, self, spec.outputs), spec, policy=self.norm, init="xavier"
        )
        return learner._replace(draws_noise=self.drop > 0)
