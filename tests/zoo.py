"""Small torch modules of many kinds, as their users write them: what `from_module` has to take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from metalearn.models import Norm
from metalearn.types import EpisodeSpec

F64 = torch.float64
WAYS = 3


@dataclass(frozen=True)
class Exhibit:
    """One module and what is known of it."""

    name: str
    make: Callable[[], nn.Module]
    spec: EpisodeSpec
    policy: str = "none"
    readout: str = "linear"
    tokens: int = 0  # x are integers below it
    train: bool = True  # the mode that it is passed in
    targets: tuple[int, ...] = ()  # Y of y [B, *Y]
    options: dict[str, Any] = field(default_factory=dict)


ZOO: dict[str, Exhibit] = {}


def classes(*shape: int) -> EpisodeSpec:
    return EpisodeSpec("classification", WAYS, 2, 2, shape, WAYS, 20, dtype=F64)


def numbers(*shape: int, outputs: int = 1) -> EpisodeSpec:
    return EpisodeSpec("regression", 1, 5, 5, shape, outputs, 0, dtype=F64)


VECTOR, IMAGE, SEQUENCE, TOKENS = classes(8), classes(2, 8, 8), classes(5, 4), classes(6)


def exhibit(spec: EpisodeSpec, **known: Any) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        ZOO[make.__name__] = Exhibit(make.__name__, make, spec, **known)
        return make

    return add


class Net(nn.Module):
    """A module of named parts, run by a function of them and x."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def pooled(*layers: nn.Module, width: int = 6) -> nn.Module:
    flat = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, WAYS))
    return nn.Sequential(*layers, *flat)


# perceptrons


@exhibit(VECTOR)
def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, WAYS))


@exhibit(VECTOR)
def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, WAYS))


@exhibit(VECTOR)
def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 7), nn.RMSNorm(7), nn.SiLU(), nn.Linear(7, WAYS))


@exhibit(VECTOR)
def prelu() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 7), nn.PReLU(7), nn.Linear(7, 6), nn.GLU(), nn.Linear(3, WAYS)
    )


@exhibit(VECTOR)
def without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 7), nn.Softplus(), nn.Linear(7, WAYS, bias=False))


@exhibit(numbers(2, outputs=3), targets=(3,))
class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 3)])
        for place, layer in enumerate(self.layers):
            bound = 1 / 2 if place == 0 else math.sqrt(6 / 8) / 5
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(5 * layer(x))
        return self.layers[-1](x)


@exhibit(VECTOR)
class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.change, self.classifier = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):  # the same layers twice
            g = torch.sigmoid(self.gate(x))
            x = g * torch.tanh(self.change(x)) + (1 - g) * x
        return self.classifier(x)


@exhibit(VECTOR)
class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 5) for _ in range(3))
        self.router, self.out = nn.Linear(8, 3), nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1).unsqueeze(-1)
        return self.out((share * torch.stack([e(x).tanh() for e in self.experts], 1)).sum(1))


@exhibit(VECTOR, readout="none")
class Hypernetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(8, 8 * WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,bio->bo", x, self.make(x).view(-1, 8, WAYS))


@exhibit(VECTOR)
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.Bilinear(8, 8, 5), nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.mix(x, x)))


@exhibit(VECTOR, readout="none")
class Loose(nn.Module):
    """Parameters in a list and a dict, and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(8, 6) / 3, torch.randn(6, WAYS) / 3])
        self.shifts = nn.ParameterDict({"a": torch.zeros(6), "b": torch.zeros(WAYS)})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.weights[0] + self.shifts["a"])
        return x @ self.weights[1] + self.shifts["b"]


@exhibit(VECTOR)
def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(WAYS))


@exhibit(VECTOR)
class RadialBasis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, 4))
        self.head = nn.Linear(32, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.exp(-((x.unsqueeze(-1) - self.centres) ** 2)).flatten(1))


@exhibit(VECTOR)
class EulerSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Linear(9, 8), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        for step in range(4):
            time = torch.full_like(x[:, :1], step / 4)
            x = x + torch.tanh(self.field(torch.cat([x, time], 1))) / 4
        return self.head(x)


# heads


@exhibit(VECTOR, readout="module")
class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(self.head(self.body(x).relu()))


@exhibit(VECTOR, readout="module")
def log_softmax() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, WAYS), nn.LogSoftmax(-1))


@exhibit(VECTOR, options={"output": "logits"})
class Named(nn.Module):
    """Two heads and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 6)
        self.head = nn.ModuleDict({"logits": nn.Linear(6, WAYS), "value": nn.Linear(6, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.body(x).tanh()
        return {name: layer(z) for name, layer in self.head.items()}


@exhibit(VECTOR, options={"output": 0, "inputs": lambda x: {"left": x[:, :4], "right": x[:, 4:]}})
class Pair(nn.Module):
    """Two arguments by name, a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(4, 6), nn.Linear(6, WAYS)

    def forward(self, right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(left) * torch.tanh(self.body(right))
        return self.last(z), z


@exhibit(classes(2, 4))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        self.compare = nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.compare((self.tower(x[:, 0]) - self.tower(x[:, 1])).square())


@exhibit(IMAGE, readout="none")
def fully_convolutional() -> nn.Module:
    layers = (nn.Conv2d(2, 6, 3), nn.ELU(), nn.Conv2d(6, WAYS, 3), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten())


@exhibit(VECTOR, readout="none", options={"head": None})
def embedding_network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, WAYS))


# shared, computed, frozen, buffered


@exhibit(VECTOR)
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, WAYS)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()))


@exhibit(classes(6), tokens=WAYS, readout="none")
class TiedHead(nn.Module):
    """A language model whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WAYS, 5)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, WAYS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.words(x).mean(1)).tanh())


@exhibit(VECTOR)
def weight_norm() -> nn.Module:
    body = parametrizations.weight_norm(nn.Linear(8, 6))
    return nn.Sequential(body, nn.ReLU(), nn.Linear(6, WAYS))


@exhibit(VECTOR)
def old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, WAYS))


@exhibit(VECTOR, train=False)
def spectral_norm() -> nn.Module:
    body = parametrizations.spectral_norm(nn.Linear(8, 6))
    return nn.Sequential(body, nn.ReLU(), nn.Linear(6, WAYS))


@exhibit(VECTOR)
def orthogonal() -> nn.Module:
    body = parametrizations.orthogonal(nn.Linear(8, 8))
    return nn.Sequential(body, nn.Tanh(), nn.Linear(8, WAYS))


@exhibit(VECTOR)
class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, WAYS)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.body(x).relu()).relu())


@exhibit(VECTOR)
class RandomFeatures(nn.Module):
    """A random buffer, another for every seed, and one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.randn(8, 6))
        self.register_buffer("order", torch.arange(8).flip(0))
        self.head = nn.Linear(12, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, self.order] @ self.waves
        return self.head(torch.cat([angle.sin(), angle.cos()], 1))


@exhibit(numbers(8), targets=(1,))
class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(5, 2))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.gain), n=8))


@exhibit(classes(5, 8))
class Rotary(nn.Module):
    """Attention with rotary positions, which are a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(5).unsqueeze(1) * torch.tensor([1.0, 0.1, 0.01, 0.001])
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))
        self.mix, self.head = nn.Linear(8, 24), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, -1)
        turn = torch.view_as_real(self.turn).to(x.dtype)
        q, k = (self.rotated(part, turn) for part in (q, k))
        z = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1))
        return self.head(z.squeeze(1).mean(1))

    def rotated(self, z: Tensor, turn: Tensor) -> Tensor:
        a, b = z.view(*z.shape[:-1], 4, 2).unbind(-1)
        c, s = turn.unbind(-1)
        return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


@exhibit(IMAGE, policy="query_batch")
def own_norm() -> nn.Module:
    return pooled(nn.Conv2d(2, 6, 3), Norm(6, "query_batch"), nn.ReLU())
