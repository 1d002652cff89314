"""MLPs for regression, and for any task whose inputs are a few numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.component import option
from metalearn.models.norm import Norm, Policy
from metalearn.nas.spaces.ops import Masks, layer_norm, width_mask
from metalearn.nas.spaces.space import Genotype, Place, Space, SpaceComponent, make_space
from metalearn.types import EpisodeSpec

DEPTHS = (1, 2, 3, 4)
WIDTHS = (16, 32, 64, 128)
# All are zero at zero, so that a masked unit contributes nothing.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sin": torch.sin,
}
SWITCH = ("off", "on")
PLACES = (
    Place("depth", tuple(map(str, DEPTHS))),
    Place("width", tuple(map(str, WIDTHS))),
    Place("activation", tuple(ACTIVATIONS)),
    Place("skip", SWITCH),
    Place("layer_norm", SWITCH),
    Place("fourier", SWITCH),
)
# Octaves (after Tancik et al. 2020). None is the frequency 1 of the sinusoid tasks, which would
# solve them.
FREQUENCIES = (0.3, 0.6, 1.2, 2.4)


def fourier(x: Tensor) -> Tensor:
    """x, then sin(f x) and cos(f x) for each frequency f: [B, I] -> [B, 9 I]."""
    angles = [frequency * x for frequency in FREQUENCIES]
    return torch.cat(
        [x, *(part for angle in angles for part in (torch.sin(angle), torch.cos(angle)))], -1
    )


class Hidden(nn.Module):
    """A linear layer, normalisation by policy, then layer norm if it is chosen."""

    def __init__(self, inputs: int, width: int, norm: bool, policy: Policy) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.policy_norm = Norm(width, policy) if policy != "none" else None
        self.layer_norm = nn.LayerNorm(width) if norm else None

    def forward(
        self,
        z: Tensor,
        norm_weights: Tensor | None,
        mask: Tensor | None,
        rows: int | None,
    ) -> Tensor:
        """[B, I] -> [B, W] before the activation; weights of layer norm [2]: off, on; mask [W]."""
        z = self.linear(z)
        if self.policy_norm is not None:
            z = self.policy_norm(z, rows)
        if mask is not None:
            z = z * mask
        if self.layer_norm is None:
            return z
        normed = layer_norm(z, self.layer_norm.weight, self.layer_norm.bias, mask)
        return normed if norm_weights is None else norm_weights[0] * z + norm_weights[1] * normed


class Regressor(nn.Module):
    """The chosen MLP; `genotype` None: the supernet, the largest sizes with masks."""

    def __init__(self, spec: EpisodeSpec, genotype: Genotype | None, policy: Policy) -> None:
        super().__init__()
        largest = (len(DEPTHS) - 1, len(WIDTHS) - 1, 0, 1, 1, 1)
        depth, width, activation, skip, norm, waves = genotype or largest
        self.activation = tuple(ACTIVATIONS)[activation]
        self.skip, self.waves = bool(skip), bool(waves)
        inputs = math.prod(spec.x_shape) * (1 + 2 * len(FREQUENCIES) * waves)
        units = WIDTHS[width]
        self.layers = nn.ModuleList(
            Hidden(inputs if layer == 0 else units, units, bool(norm), policy)
            for layer in range(DEPTHS[depth])
        )
        self.mask = Masks(PLACES) if genotype is None else None
        self.head = nn.Linear(units, spec.outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        out: Tensor = self.head(
            self._chosen(x, rows) if self.mask is None else self._mixed(x, rows)
        )
        return out

    def _chosen(self, x: Tensor, rows: int | None) -> Tensor:
        z = fourier(x.flatten(1)) if self.waves else x.flatten(1)
        for index, layer in enumerate(self.layers):
            output = ACTIVATIONS[self.activation](layer(z, None, None, rows))
            z = output + z if self.skip and index > 0 else output
        return z

    def _mixed(self, x: Tensor, rows: int | None) -> Tensor:
        assert self.mask is not None
        flat = x.flatten(1)
        waves = fourier(flat)
        extra = waves.shape[1] - flat.shape[1]
        z = waves * torch.cat(
            [flat.new_ones(flat.shape[1]), self.mask.of("fourier")[1].expand(extra)]
        )
        width = width_mask(self.mask.of("width"), WIDTHS, flat)
        out = torch.zeros_like(width)
        for index, layer in enumerate(self.layers):
            preactivation = layer(z, self.mask.of("layer_norm"), width, rows)
            output = sum(
                (
                    weight * act(preactivation)
                    for weight, act in zip(self.mask.of("activation"), ACTIVATIONS.values())
                ),
                start=torch.zeros_like(width),
            )
            z = output + self.mask.of("skip")[1] * z if index > 0 else output
            out = out + self.mask.of("depth")[index] * z
        return out


class MLPReg(SpaceComponent):
    """640 MLPs: depth, width, activation, skip connections, layer norm, Fourier inputs.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "query_batch")
    >>> space.size
    640
    """

    name: Literal["mlp-reg"] = option("mlp-reg", "The space.")

    def build(self, spec: EpisodeSpec, policy: Policy = "none") -> Space:
        """The space for tasks of `spec`; `policy` normalises after every linear layer."""
        skip = [place.name for place in PLACES].index("skip")

        def canonical(genotype: Genotype) -> Genotype:
            """The same genotype; without skip connections where there is one hidden layer."""
            return (*genotype[:skip], 0, *genotype[skip + 1 :]) if genotype[0] == 0 else genotype

        default = (1, 1, 0, 0, 0, 0)  # two layers of 32 with ReLU: nearest to MAML's two of 40
        return make_space(
            self.name,
            spec,
            PLACES,
            canonical,
            lambda genotype: Regressor(spec, genotype, policy),
            default,
            policy,
            "uniform",
        )
