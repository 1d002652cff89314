"""ResNet-12 of torch's own layers, with our names."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.bench.workloads import Workload

WIDTHS = (64, 160, 320, 640)


class Convolution(nn.Module):
    """A convolution and batch norm with the current batch."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class Block(nn.Module):
    """Three convolutions and a 1 x 1 shortcut convolution, then 2 x 2 maxima."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        sizes = itertools.pairwise((inputs, outputs, outputs, outputs))
        self.convs = nn.ModuleList(Convolution(a, b, 3) for a, b in sizes)
        self.shortcut = Convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for index, conv in enumerate(self.convs):
            z = conv(z) if index == 2 else F.leaky_relu(conv(z), 0.1)
        return F.max_pool2d(F.leaky_relu(z + self.shortcut(x), 0.1), 2)


class TwelveLayers(nn.Module):
    """Four blocks, the mean over positions, a head."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        sizes = (work.x_shape[0], *(width * work.filters // 64 for width in WIDTHS))
        self.blocks = nn.ModuleList(Block(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], work.outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x.mean((-2, -1)))
        return out
