"""The zoo's convolutional networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import IMAGE, SEQUENCE, VECTOR, WAYS, ZOO, classes, exhibit, numbers, pooled

__all__ = ["ZOO"]


class Block(nn.Module):
    """A residual block of two convolutions with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        z += x if self.downsample is None else self.downsample(x)
        return self.relu(z)


class ResNet18(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks = []
        for stage in range(4):
            inputs, outputs = width * max(1, stage), width * (stage + 1)
            blocks += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        self.layers = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4 * width, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(z)), 1))


SMALL = classes(2, 12, 12)


@exhibit(SMALL, policy="query_batch")
def resnet18() -> nn.Module:
    return ResNet18()


@exhibit(SMALL, policy="frozen", train=False)
def resnet18_in_evaluation_mode() -> nn.Module:
    net = ResNet18()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return net


@exhibit(SMALL, policy="running", options={"policy": "running"})
def resnet18_running() -> nn.Module:
    return ResNet18()


@exhibit(IMAGE, policy="query_batch")
def resnet12() -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        parts: list[nn.Module] = []
        for place in range(3):
            conv = nn.Conv2d(inputs if place == 0 else outputs, outputs, 3, padding=1, bias=False)
            parts += [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]
        return nn.Sequential(*parts, nn.MaxPool2d(2))

    return pooled(block(2, 4), block(4, 6))


@exhibit(IMAGE, policy="query_batch")
def batch_norm_without_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    return pooled(nn.Conv2d(2, 6, 3), norm, nn.ReLU())


@exhibit(VECTOR, policy="query_batch")
def batch_norm_of_vectors() -> nn.Module:
    norm = nn.BatchNorm1d(6, affine=False)
    return nn.Sequential(nn.Linear(8, 6), norm, nn.ReLU(), nn.Linear(6, WAYS))


@exhibit(IMAGE)
def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    return pooled(nn.Conv2d(2, 6, 3), norm, nn.ReLU())


@exhibit(IMAGE, policy="frozen", train=False)
def frozen_instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(6, track_running_stats=True)
    nn.init.uniform_(norm.running_mean, -0.3, 0.3)
    return pooled(nn.Conv2d(2, 6, 3), norm, nn.ReLU())


@exhibit(IMAGE)
def group_norm() -> nn.Module:
    return pooled(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.LocalResponseNorm(2), nn.Hardswish())


@exhibit(IMAGE, policy="query_batch")
class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2 + 3 * n, 3, 3, padding=1) for n in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.classifier = nn.Linear(11, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat([x, norm(conv(x)).relu()], 1)
        return self.classifier(x.mean((-2, -1)))


@exhibit(IMAGE)
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(2, 6, 3, groups=2)
        self.pointwise = nn.Conv2d(6, 6, 1)
        self.down, self.up, self.out = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu6(self.pointwise(self.depthwise(x)))
        gate = torch.sigmoid(self.up(F.relu(self.down(z.mean((2, 3))))))
        return self.out((z * gate[:, :, None, None]).amax((2, 3)))


@exhibit(IMAGE)
class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(2, 6, 2, 2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.scale = nn.LayerNorm(6), nn.Parameter(0.1 * torch.ones(6))
        self.wide, self.narrow, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        z = self.norm(self.mix(x).permute(0, 2, 3, 1))
        z = (self.scale * self.narrow(F.gelu(self.wide(z)))).permute(0, 3, 1, 2)
        return self.head((x + z).mean((-2, -1)))


@exhibit(numbers(2, 8, 8), readout="none", targets=(1, 8, 8))
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.merge, self.out = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        return self.out(F.relu(self.merge(torch.cat([a, self.up(b)], 1))))


@exhibit(numbers(2, 8, 8), readout="none", targets=(2, 8, 8))
def autoencoder() -> nn.Module:
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    code = (nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 3, 3, 2, 1), nn.Tanh())
    return nn.Sequential(*code, up, nn.ConvTranspose2d(3, 2, 4, 2, 1), nn.Conv2d(2, 2, 1))


@exhibit(SEQUENCE)
class Dilated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4, 4, 2, dilation=n) for n in (1, 2))
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = x.transpose(1, 2)
        for conv in self.convs:
            z = F.leaky_relu(conv(F.pad(z, (conv.dilation[0], 0)))) + z
        return self.head(z[..., -1])
