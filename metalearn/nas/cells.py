"""Networks made of one cell used several times: the module, and which genotypes of a cell compute
the same.
"""

from __future__ import annotations

import functools
import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.errors import ConfigError
from metalearn.models.conv4 import pool
from metalearn.models.norm import Moments, Policy
from metalearn.nas.ops import ConvNorm, Masks, avg3, half
from metalearn.nas.space import Genotype, Place, Space, make_space
from metalearn.types import EpisodeSpec

Downsample = Literal["stride", "pool"]
OPS = ("none", "skip", "conv1", "conv3", "avg3")  # of NAS-Bench-201 (Dong & Yang 2020, section 2.1)
NONE, SKIP = OPS.index("none"), OPS.index("skip")
CONVS = {"conv1": 1, "conv3": 3}
CELLS = 3


def edges_of(nodes: int) -> tuple[tuple[int, int], ...]:
    """(from, to) of every edge of a cell, by target and then source."""
    return tuple((source, target) for target in range(1, nodes) for source in range(target))


def alive(nodes: int, genotype: Genotype) -> tuple[bool, ...]:
    """For each edge: does something enter it, and does it reach the output?"""
    edges = edges_of(nodes)
    fed, used = {0}, {nodes - 1}
    for (source, target), op in zip(edges, genotype):
        if op != NONE and source in fed:
            fed.add(target)
    for (source, target), op in sorted(zip(edges, genotype), key=lambda item: -item[0][1]):
        if op != NONE and target in used:
            used.add(source)
    return tuple(op != NONE and s in fed and t in used for (s, t), op in zip(edges, genotype))


class Edge(nn.Module):
    """One operation, or all of them weighted by a mask."""

    def __init__(self, op: int | None, filters: int, stride: int, norm: Policy) -> None:
        super().__init__()
        self.op, self.stride = op, stride
        for name, size in CONVS.items():
            if op is None or OPS[op] == name:
                self.add_module(name, ConvNorm(filters, filters, size, stride, norm))

    def forward(
        self, x: Tensor, active: Tensor, mask: Tensor | None, rows: int | None, seen: Moments | None
    ) -> Tensor:
        """x [B, H, W, F] and `active`, its ReLU, which convolutions take -> [B, Ho, Wo, F]."""
        if self.op is not None:
            return self._one(OPS[self.op], x, active, rows, seen)
        assert mask is not None
        return sum(
            (
                mask[place] * self._one(name, x, active, rows, seen)
                for place, name in enumerate(OPS)
                if place != NONE
            ),
            start=torch.zeros_like(mask[0]),
        )

    def _one(
        self, name: str, x: Tensor, active: Tensor, rows: int | None, seen: Moments | None
    ) -> Tensor:
        if name in CONVS:
            out: Tensor = self.get_submodule(name)(active, rows, seen)
            return out
        if name == "avg3":
            return avg3(x, self.stride)
        return x if self.stride == 1 else half(x)


class Cell(nn.Module):
    """Nodes in a row; each is the sum of its edges from the nodes before it (Dong & Yang 2020,
    figure 1).
    """

    def __init__(
        self, nodes: int, genotype: Genotype | None, filters: int, strided: bool, norm: Policy
    ) -> None:
        super().__init__()
        self.nodes, self.strided = nodes, strided
        live = (True,) * len(edges_of(nodes)) if genotype is None else alive(nodes, genotype)
        self.names = {
            edge: "-".join(map(str, edge)) for edge, here in zip(edges_of(nodes), live) if here
        }
        for place, edge in enumerate(edges_of(nodes)):
            if edge in self.names:
                op = None if genotype is None else genotype[place]
                stride = 2 if strided and edge[0] == 0 else 1
                self.add_module(self.names[edge], Edge(op, filters, stride, norm))

    def forward(
        self, x: Tensor, masks: Masks | None, rows: int | None, seen: Moments | None
    ) -> Tensor:
        """[B, H, W, F] -> the same, or half as high and wide where the first edges have strides."""
        values: dict[int, tuple[Tensor, Tensor]] = {0: (x, F.relu(x))}
        for node in range(1, self.nodes):
            parts = [
                self.get_submodule(name)(
                    *values[source], masks.of(name) if masks else None, rows, seen
                )
                for (source, target), name in self.names.items()
                if target == node
            ]
            if parts:
                total = functools.reduce(torch.add, parts)
                values[node] = (total, F.relu(total))
        if self.nodes - 1 in values:
            return values[self.nodes - 1][0]
        return torch.zeros_like(
            half(x) if self.strided else x
        )  # no way through: the network says its head's bias


class CellNet(nn.Module):
    """Conv4 with its last three blocks replaced by one cell used three times.

    stem: convolution, norm, ReLU, as Conv4's first block; then three cells; a ReLU, the mean over
    places, the head. Downsampling is Conv4's: 2 x 2 maxima after stem and cells, or strides of the
    stem and of the edges that leave a cell's first node. So the cell whose only way through is one
    conv3 is Conv4."""

    def __init__(
        self,
        spec: EpisodeSpec,
        nodes: int,
        filters: int,
        downsample: Downsample,
        genotype: Genotype | None,
        norm: Policy,
    ) -> None:
        super().__init__()
        self.pooled = downsample == "pool"
        self.stem = ConvNorm(spec.x_shape[0], filters, 3, 1 if self.pooled else 2, norm)
        self.cells = nn.ModuleList(
            Cell(nodes, genotype, filters, not self.pooled, norm) for _ in range(CELLS)
        )
        self.mask = (
            None
            if genotype is not None
            else Masks({place.name: len(OPS) for place in places_of(nodes)})
        )
        self.head = nn.Linear(filters, spec.outputs)

    def forward(self, x: Tensor, rows: int | None = None, seen: Moments | None = None) -> Tensor:
        z = F.relu(self.stem(x.permute(0, 2, 3, 1), rows, seen))
        z = pool(z) if self.pooled else z
        for cell in self.cells:
            z = cell(z, self.mask, rows, seen)
            z = pool(z) if self.pooled else z
        out: Tensor = self.head(F.relu(z).mean((1, 2)))
        return out


def places_of(nodes: int) -> tuple[Place, ...]:
    return tuple(Place("-".join(map(str, edge)), OPS) for edge in edges_of(nodes))


def form(
    nodes: int, genotype: Genotype, strided: bool, labels: dict[int, str] | None = None
) -> tuple[str, dict[int, str]]:
    """(what the cell computes, as an expression; the expression of each convolution, by edge).

    None adds nothing, skip is what it passes on, avg3 of a sum is the sum of its terms' avg3, sums
    have no order. `labels` tells convolutions with weights of their own apart.
    """
    terms: dict[int, list[str]] = {0: ["x"]}
    colours: dict[int, str] = {}
    for target in range(1, nodes):
        found: list[str] = []
        for place, (source, end) in enumerate(edges_of(nodes)):
            if end != target or genotype[place] == NONE or not terms[source]:
                continue
            name, inside = OPS[genotype[place]], terms[source]
            if (
                strided and source == 0
            ):  # a strided 1 x 1 is a 1 x 1 of every second place; a 3 x 3 looks between them
                inside = ["half(x)"] if name in ("skip", "conv1") else ["around(x)"]
            if name in CONVS:
                colours[place] = f"{name}({'+'.join(inside)})"
                found.append(colours[place] + ("" if labels is None else labels[place]))
            else:
                found += inside if name == "skip" else [f"avg3({term})" for term in inside]
        terms[target] = sorted(found)
    return "+".join(terms[nodes - 1]), colours


def exact_form(nodes: int, genotype: Genotype, strided: bool) -> str:
    """The expression that two cells share exactly when, for the right weights, they compute the
    same.

    Departure from NAS-Bench-201 (6,466 unique cells): its expressions are trees, so that a
    convolution used twice and two convolutions of one input are the same, although the first has
    one set of weights and the second two; and its sums keep their brackets and their zeros. Here
    each convolution of a kind has a number, and the smallest expression over all numberings stands
    for all."""
    _, colours = form(nodes, genotype, strided)
    groups: dict[str, list[int]] = {}
    for place, colour in colours.items():
        groups.setdefault(colour, []).append(place)
    found = []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups.values())):
        labels = {place: f"#{number}" for order in orders for number, place in enumerate(order)}
        found.append(form(nodes, genotype, strided, labels)[0])
    return min(found)


@functools.cache
def representatives(nodes: int, strided: bool) -> dict[Genotype, Genotype]:
    """Genotype -> its representative: of all that compute the same, the one with most none, then
    the first.
    """
    best: dict[str, Genotype] = {}
    forms: dict[Genotype, str] = {}
    for genotype in itertools.product(range(len(OPS)), repeat=len(edges_of(nodes))):
        forms[genotype] = expression = exact_form(nodes, genotype, strided)
        old = best.get(expression)
        if old is None or old.count(NONE) < genotype.count(NONE):
            best[expression] = genotype
    return {genotype: best[expression] for genotype, expression in forms.items()}


def cell_space(
    name: str, nodes: int, filters: int, downsample: Downsample, spec: EpisodeSpec, policy: Policy
) -> Space:
    """The space of all cells with `nodes` nodes; ConfigError for tasks without images."""
    if len(spec.x_shape) != 3:
        text = (
            f"{name} needs images [channels, H, W], this task gives {list(spec.x_shape)}: "
            f"use mlp-reg"
        )
        raise ConfigError(("method.space", text))
    if downsample == "pool" and min(spec.x_shape[1:]) < 2 ** (CELLS + 1):
        text = (
            f"pooling four times needs at least 16 x 16, this task gives "
            f"{list(spec.x_shape)}: use stride"
        )
        raise ConfigError(("method.space.downsample", text))
    edges = edges_of(nodes)
    default = tuple(OPS.index("conv3") if edge == (0, nodes - 1) else NONE for edge in edges)
    return make_space(
        name,
        spec,
        places_of(nodes),
        lambda genotype: representatives(nodes, downsample == "stride")[genotype],
        lambda genotype: CellNet(spec, nodes, filters, downsample, genotype, policy),
        default,
        policy,
        "xavier",
    )
