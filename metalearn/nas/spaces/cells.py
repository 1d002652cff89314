"""Networks that use one cell several times, and which genotypes compute the same function."""

from __future__ import annotations

import functools
import itertools
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.models.conv4 import BLOCKS, pool
from metalearn.models.norm import Policy
from metalearn.nas.spaces.ops import ConvNorm, Masks, avg3, half
from metalearn.nas.spaces.space import Genotype, Place, Space, SpaceComponent, make_space
from metalearn.types import EpisodeSpec

Downsample = Literal["stride", "pool"]
DOWNSAMPLE = "Downsample by stride-2 convolutions or 2 x 2 max-pooling; both conventions "
"exist for Conv4."
OPS = ("none", "skip", "conv1", "conv3", "avg3")  # of NAS-Bench-201 (Dong & Yang 2020, section 2.1)
NONE = OPS.index("none")
CONVS = {"conv1": 1, "conv3": 3}
CELLS = BLOCKS - 1  # after the stem


def cell_edges(nodes: int) -> tuple[tuple[int, int], ...]:
    """Return (from, to) of every edge of a cell, by target and then source."""
    return tuple((source, target) for target in range(1, nodes) for source in range(target))


def live_edges(nodes: int, genotype: Genotype) -> tuple[bool, ...]:
    """Return for each edge whether it is on a path from the input to the output."""
    edges = cell_edges(nodes)
    reached, useful = {0}, {nodes - 1}
    for (source, target), op in zip(edges, genotype):
        if op != NONE and source in reached:
            reached.add(target)
    for (source, target), op in sorted(zip(edges, genotype), key=lambda item: -item[0][1]):
        if op != NONE and target in useful:
            useful.add(source)
    return tuple(op != NONE and s in reached and t in useful for (s, t), op in zip(edges, genotype))


class Edge(nn.Module):
    """One operation, or the sum of all operations weighted by a mask."""

    def __init__(self, op: int | None, filters: int, stride: int, norm: Policy) -> None:
        super().__init__()
        self.op, self.stride = op, stride
        for name, size in CONVS.items():
            if op is None or OPS[op] == name:
                self.add_module(name, ConvNorm(filters, filters, size, stride, norm))

    def forward(self, x: Tensor, active: Tensor, mask: Tensor | None, rows: int | None) -> Tensor:
        """x [B, H, W, F] and its ReLU `active`, the input of convolutions -> [B, Ho, Wo, F]."""
        if self.op is not None:
            return self._apply_op(OPS[self.op], x, active, rows)
        assert mask is not None
        return sum(
            (
                mask[index] * self._apply_op(name, x, active, rows)
                for index, name in enumerate(OPS)
                if index != NONE
            ),
            start=torch.zeros_like(mask[0]),
        )

    def _apply_op(self, name: str, x: Tensor, active: Tensor, rows: int | None) -> Tensor:
        if name in CONVS:
            out: Tensor = self.get_submodule(name)(active, rows)
            return out
        if name == "avg3":
            return avg3(x, self.stride)
        return x if self.stride == 1 else half(x)


class Cell(nn.Module):
    """Nodes, each the sum of its edges from earlier nodes (Dong & Yang 2020, figure 1)."""

    def __init__(
        self, nodes: int, genotype: Genotype | None, filters: int, strided: bool, norm: Policy
    ) -> None:
        super().__init__()
        self.nodes, self.strided = nodes, strided
        live = (True,) * len(cell_edges(nodes)) if genotype is None else live_edges(nodes, genotype)
        self.names = {
            edge: "-".join(map(str, edge))
            for edge, is_live in zip(cell_edges(nodes), live)
            if is_live
        }
        for number, edge in enumerate(cell_edges(nodes)):
            if edge in self.names:
                op = None if genotype is None else genotype[number]
                stride = 2 if strided and edge[0] == 0 else 1
                self.add_module(self.names[edge], Edge(op, filters, stride, norm))

    def forward(self, x: Tensor, masks: Masks | None, rows: int | None) -> Tensor:
        """[B, H, W, F] -> the same, or half as high and wide where the first edges have strides."""
        values: dict[int, tuple[Tensor, Tensor]] = {0: (x, F.relu(x))}
        for node in range(1, self.nodes):
            parts = [
                self.get_submodule(name)(*values[source], masks.of(name) if masks else None, rows)
                for (source, target), name in self.names.items()
                if target == node
            ]
            if parts:
                total = functools.reduce(torch.add, parts)
                values[node] = (total, F.relu(total))
        if self.nodes - 1 in values:
            return values[self.nodes - 1][0]
        # No path from input to output: the network returns the bias of its head.
        return torch.zeros_like(half(x) if self.strided else x)


class CellNet(nn.Module):
    """Conv4 with its last three blocks replaced by one cell used three times.

    The stem is Conv4's first block (convolution, norm, ReLU); then come three cells, a ReLU, the
    mean over pixels, and the head. Downsampling is Conv4's: 2 x 2 max-pooling after stem and cells,
    or strides of the stem and of the edges that leave a cell's first node. So the cell whose only
    path is one conv3 is Conv4."""

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
        self.mask = Masks(cell_places(nodes)) if genotype is None else None
        self.head = nn.Linear(filters, spec.outputs)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        z = F.relu(self.stem(x.permute(0, 2, 3, 1), rows))
        z = pool(z) if self.pooled else z
        for cell in self.cells:
            z = cell(z, self.mask, rows)
            z = pool(z) if self.pooled else z
        out: Tensor = self.head(F.relu(z).mean((1, 2)))
        return out


def cell_places(nodes: int) -> tuple[Place, ...]:
    return tuple(Place("-".join(map(str, edge)), OPS) for edge in cell_edges(nodes))


def cell_expression(
    nodes: int, genotype: Genotype, strided: bool, labels: dict[int, str] | None = None
) -> tuple[str, dict[int, str]]:
    """Return (the function of a cell as an expression; that of each convolution, by edge).

    `none` adds nothing, `skip` is the identity, avg3 is linear, sums have no order. `labels`
    distinguish convolutions, each of which has its own weights."""
    terms: dict[int, list[str]] = {0: ["x"]}
    convs: dict[int, str] = {}
    for target in range(1, nodes):
        node_terms: list[str] = []
        for index, (source, end) in enumerate(cell_edges(nodes)):
            if end != target or genotype[index] == NONE or not terms[source]:
                continue
            name, inputs = OPS[genotype[index]], terms[source]
            # A strided 1 x 1 reads every second pixel alone; a 3 x 3 also reads those between.
            if strided and source == 0:
                inputs = ["half(x)"] if name in ("skip", "conv1") else ["around(x)"]
            if name in CONVS:
                convs[index] = f"{name}({'+'.join(inputs)})"
                node_terms.append(convs[index] + ("" if labels is None else labels[index]))
            else:
                node_terms += inputs if name == "skip" else [f"avg3({term})" for term in inputs]
        terms[target] = sorted(node_terms)
    return "+".join(terms[nodes - 1]), convs


def canonical_expression(nodes: int, genotype: Genotype, strided: bool) -> str:
    """Return an expression that is equal for two cells iff they compute the same functions.

    Departure from NAS-Bench-201 (6,466 unique cells): its expressions are trees, in which one
    convolution used twice equals two convolutions of one input, although the first has one set of
    weights and the second two; and its sums keep their brackets and their zeros. Here each
    convolution of a kind has a number, and the smallest expression over all numberings is taken."""
    _, convs = cell_expression(nodes, genotype, strided)
    groups: dict[str, list[int]] = {}
    for index, conv in convs.items():
        groups.setdefault(conv, []).append(index)
    expressions = []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups.values())):
        labels = {index: f"#{number}" for order in orders for number, index in enumerate(order)}
        expressions.append(cell_expression(nodes, genotype, strided, labels)[0])
    return min(expressions)


@functools.cache
def representatives(nodes: int, strided: bool) -> dict[Genotype, Genotype]:
    """Genotype -> its representative among all cells that compute the same function.

    The representative has the most `none`; of several the first is taken."""
    best: dict[str, Genotype] = {}
    expressions: dict[Genotype, str] = {}
    for genotype in itertools.product(range(len(OPS)), repeat=len(cell_edges(nodes))):
        expressions[genotype] = expression = canonical_expression(nodes, genotype, strided)
        old = best.get(expression)
        if old is None or old.count(NONE) < genotype.count(NONE):
            best[expression] = genotype
    return {genotype: best[expression] for genotype, expression in expressions.items()}


def check_images(name: str, spec: EpisodeSpec, downsample: Downsample) -> None:
    """Raise ConfigError for tasks without images, or with images too small to halve four times."""
    if len(spec.x_shape) != 3:
        text = f"{name} needs images [channels, H, W] (got {list(spec.x_shape)})"
        raise ConfigError(("method.space", f"{text}: use mlp-reg"))
    if downsample == "pool" and min(spec.x_shape[1:]) < 2**BLOCKS:
        text = "pooling four times needs images of at least 16 x 16, but this task has"
        raise ConfigError(("method.space.downsample", f"{text} {list(spec.x_shape)}: use stride"))


class CellSpaceComponent(SpaceComponent):
    """The fields of a space of cells, and its construction."""

    nodes: ClassVar[int]

    filters: int = option(16, "Channels of every block.", ge=1, le=4096)
    downsample: Downsample = option("stride", DOWNSAMPLE)

    def build(self, spec: EpisodeSpec, policy: Policy = "query_batch") -> Space:
        """The space for image tasks of `spec`, normalised by `policy`; raises ConfigError."""
        check_images(self.name, spec, self.downsample)
        nodes, strided = self.nodes, self.downsample == "stride"
        edges = cell_edges(nodes)
        default = tuple(OPS.index("conv3") if edge == (0, nodes - 1) else NONE for edge in edges)
        return make_space(
            self.name,
            spec,
            cell_places(nodes),
            lambda genotype: representatives(nodes, strided)[genotype],
            lambda genotype: CellNet(spec, nodes, self.filters, self.downsample, genotype, policy),
            default,
            policy,
            "xavier",
        )
