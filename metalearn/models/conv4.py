"""Four convolutional blocks, the field's common small network.

Vinyals et al. 2016 pool; MAML's variant has strides."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.kernels import native
from metalearn.kernels.conv import conv2d
from metalearn.kernels.norm_relu_pool import EPS, norm_relu_pool, with_moments
from metalearn.models.functional import module_learner
from metalearn.models.norm import RUNNING, Norm, Policy, batch_normalised
from metalearn.types import EpisodeSpec, Learner

BLOCKS = 4
Width = Annotated[int, Field(ge=1, le=4096)]


def pool(x: Tensor) -> Tensor:
    """2 x 2 maxima with stride 2: [B, H, W, F] -> [B, H // 2, W // 2, F], an odd border dropped.

    Written as maxima of strided views, which batch and differentiate twice without index
    bookkeeping. On ties the gradient is shared, where max_pool2d gives it to the first; ties here
    are zeros of a ReLU, which pass no gradient."""
    height, width = x.shape[-3] // 2 * 2, x.shape[-2] // 2 * 2
    x = x[..., :height, :width, :]
    rows = torch.maximum(x[..., ::2, :, :], x[..., 1::2, :, :])
    return torch.maximum(rows[..., ::2, :], rows[..., 1::2, :])


def _widths(filters: int | tuple[int, ...]) -> tuple[int, ...]:
    return (filters,) * BLOCKS if isinstance(filters, int) else filters


class _Beside(torch.autograd.Function):
    """The first of two tensors of one shape; the gradient of the second is zero, not none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, other: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros((), dtype=grad.dtype, device=grad.device).expand(grad.shape)


def _beside(value: Tensor, other: Tensor) -> Tensor:
    """`value` + 0 * `other`, on CUDA without arithmetic."""
    if not value.is_cuda:
        return value + 0 * other
    return cast(Tensor, _Beside.apply(value, other))  # type: ignore[no-untyped-call]


class FourBlocks(nn.Module):
    """(3 x 3 convolution, norm, ReLU, pooling) four times, then the head.

    With strides there is no pooling. Inside, channels come last: neighbours in memory, whatever the
    stride of pooling or convolution."""

    def __init__(
        self,
        x_shape: tuple[int, ...],
        filters: int | tuple[int, ...],  # channels of every block, or of each
        outputs: int,
        strided: bool,
        flatten: bool,
        norm: Policy,
        downsampled: int = BLOCKS,  # blocks that downsample, from the first
    ) -> None:
        super().__init__()
        native.kernel()  # built here, once, and not inside a compiled step
        widths = _widths(filters)
        channels, height, width = x_shape
        self.flatten = flatten
        self.strides = [2 if strided and place < downsampled else 1 for place in range(BLOCKS)]
        self.windows = [1 if strided or place >= downsampled else 2 for place in range(BLOCKS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(
                channels if place == 0 else widths[place - 1],
                width,
                3,
                stride=self.strides[place],
                padding=1,
            )
            for place, width in enumerate(widths)
        )
        norms = (Norm(width, norm, channels_last=True) for width in widths)
        self.norms = nn.ModuleList(norms) if norm != "none" else None
        for _ in range(downsampled):
            height, width = (
                ((height + 1) // 2, (width + 1) // 2) if strided else (height // 2, width // 2)
            )
        last = widths[-1]
        self.head = nn.Linear(last * height * width if flatten else last, outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = x.permute(0, 2, 3, 1)
        for place, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            stride, window = self.strides[place], self.windows[place]
            norm = None if self.norms is None else self.norms[place]
            moves = norm is not None and norm.policy == "running"
            if isinstance(norm, Norm) and norm.of_batch(rows) and (native.usable(x) or not moves):
                # Without the convolution's bias: the batch's own mean takes it out again. Its
                # gradient is zero, and not none, for who asks for all of them (learn2learn's
                # MetaSGD does).
                shift = norm.bias if conv.bias is None else _beside(norm.bias, conv.bias)
                z = conv2d(z, conv.weight, None, stride)
                if native.usable(z):
                    z = z.to(norm.weight.dtype)  # of autocast's bfloat16 too
                    if not moves:
                        z = norm_relu_pool(z, norm.weight, shift, window)
                        continue
                    count = z.numel() // z.shape[-1]
                    z, mean, scale = with_moments(z, norm.weight, shift, window)
                    mean = mean if conv.bias is None else mean + conv.bias
                    norm.move_averages(mean, scale.pow(-2) - EPS, count)
                    continue
                z = batch_normalised(z, norm.weight, shift)
            else:
                z = conv2d(z, conv.weight, conv.bias, stride)
                z = z if norm is None else norm(z, rows)
            z = F.relu(z)
            if window == 2:
                z = pool(z)
        z = z.permute(0, 3, 1, 2).flatten(1) if self.flatten else z.mean((1, 2))
        out: Tensor = self.head(z)
        return out


class Conv4(ModelComponent):
    """Four convolutional blocks, with strides as in MAML or pooling as in Matching Networks.

    >>> spec = ml.tasks.Glyphs(ways=5).build().spec
    >>> learner = ml.models.Conv4(filters=32).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 5])
    """

    name: Literal["conv4"] = option("conv4", "The model.")
    filters: Width | tuple[Width, Width, Width, Width] = option(
        64, "Channels of all blocks, or one number per block, such as 96, 192, 384, 512 in R2-D2."
    )
    downsample: Literal["stride", "pool"] = option(
        "stride", "Downsample by stride-2 convolutions or 2 x 2 max-pooling."
    )
    downsampled_blocks: int = option(
        BLOCKS,
        "Blocks that downsample, from the first; RFS pools in 3 of the 4.",
        ge=1,
        le=BLOCKS,
        later=True,
    )
    flatten: bool = option(
        False,
        "Flatten the last feature map instead of averaging it (MAML's Omniglot code averages).",
    )
    norm: Policy = option("query_batch", f"Normalisation policy of each block; {RUNNING}")
    head_std: float | None = option(
        None,
        "Standard deviation of the head's normal initialization (MAML's Omniglot code: 1); "
        "null: Glorot, as the convolutions.",
        acts="train",
        gt=0,
    )

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for image tasks [channels, H, W]; four poolings need at least 16 x 16."""
        if len(spec.x_shape) != 3:
            text = "conv4 needs images [channels, H, W], but this task has"
            raise ConfigError(("model", f"{text} {list(spec.x_shape)}: use mlp"))
        first, second, last = spec.x_shape
        if first == second > 4 and last in (1, 3, 4):
            text = f"conv4 needs images [channels, H, W], and {list(spec.x_shape)} looks like"
            hint = "move the channels to the front, x.transpose(0, 3, 1, 2)"
            raise ConfigError(("model", f"{text} [H, W, channels]: {hint}"))
        least = 2**self.downsampled_blocks
        if self.downsample == "pool" and min(spec.x_shape[1:]) < least:
            text = f"{self.downsampled_blocks} poolings need images of at least {least} x {least}"
            hint = f"but this task has {list(spec.x_shape)}: use stride"
            raise ConfigError(("model.downsample", f"{text}, {hint}"))
        return module_learner(
            lambda: FourBlocks(
                spec.x_shape,
                self.filters,
                spec.outputs,
                self.downsample == "stride",
                self.flatten,
                self.norm,
                self.downsampled_blocks,
            ),
            spec,
            policy=self.norm,
            init="xavier",
            head_std=self.head_std,
        )
