"""Search spaces: their sizes, equivalent genotypes, and equality of all ways to build a network."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from nas_tasks import F64, image_spec

from metalearn.component import Component
from metalearn.inner.adapt import adapt
from metalearn.inner.rules import momentum
from metalearn.losses import cross_entropy, squared_error
from metalearn.models import Conv4
from metalearn.nas import Conv4Micro, Conv4Size, MLPReg, NB201Conv4
from metalearn.nas.spaces.cells import NONE, OPS, cell_edges, representatives
from metalearn.nas.spaces.conv4_size import WIDTHS
from metalearn.nas.spaces.ops import avg3, layer_norm
from metalearn.nas.spaces.space import (
    MASK,
    Space,
    classes,
    embed,
    extract_subnet,
    genotypes,
    insert_subnet,
    one_hot,
    shuffled,
)
from metalearn.rng import fold_in, normal
from metalearn.tree import take, vmap
from metalearn.types import Batch, EpisodeSpec, Params

REGRESSION = EpisodeSpec("regression", 1, 10, 4, (1,), 1, 0, dtype=F64)
IMAGES = image_spec()
# Every space in both of its bodies and under policies that keep statistics differently.
BUILT: list[tuple[str, Component, EpisodeSpec, str]] = [
    ("micro stride", Conv4Micro(filters=3), IMAGES, "query_batch"),
    ("micro pool", Conv4Micro(filters=3, downsample="pool"), IMAGES, "support"),
    ("nb201 stride", NB201Conv4(filters=2), IMAGES, "none"),
    ("size stride", Conv4Size(), IMAGES, "query_batch"),
    ("size pool", Conv4Size(downsample="pool"), IMAGES, "running"),
    ("mlp", MLPReg(), REGRESSION, "none"),
    ("mlp normed", MLPReg(), REGRESSION, "query_batch"),
]
NAMES = [name for name, *_ in BUILT]
every_space = pytest.mark.parametrize(
    ("component", "spec", "policy"), [rest for _, *rest in BUILT], ids=NAMES
)


def some(space: Space, count: int, seed: int = 0) -> list[Any]:
    return list(itertools.islice(shuffled(space, fold_in(seed, "some")), count))


def inputs(spec: EpisodeSpec, count: int, name: str = "x") -> torch.Tensor:
    return normal(fold_in(5, name), (count, *spec.x_shape), spec.dtype)


# how many there are


@pytest.mark.parametrize(
    ("component", "spec", "size", "different"),
    [
        (Conv4Micro(), IMAGES, 125, 70),
        (Conv4Micro(downsample="pool"), IMAGES, 125, 60),
        (NB201Conv4(), IMAGES, 15_625, 6_118),
        (NB201Conv4(downsample="pool"), IMAGES, 15_625, 5_044),
        (Conv4Size(), image_spec(side=28), 1_536, 1_536),
        # the last map is one place: both heads are one
        (Conv4Size(downsample="pool"), IMAGES, 1_536, 768),
        (MLPReg(), REGRESSION, 640, 560),  # 80 of one layer have nothing to skip
    ],
)
def test_counts_of_genotypes_and_of_different_networks(
    component: Any, spec: EpisodeSpec, size: int, different: int
) -> None:
    space = component.build(spec, "query_batch")
    assert space.size == size == len(set(genotypes(space)))
    assert (
        len(classes(space))
        == different
        == len({space.canonical(genotype) for genotype in genotypes(space)})
    )
    assert space.canonical(space.default) == space.default


def test_nas_bench_201_counts_its_own_cells_as_published() -> None:
    """Their rule gives 6,466 unique cells (Dong & Yang 2020, section 2.1) on our edges."""
    found = set()
    for genotype in itertools.product(range(len(OPS)), repeat=6):
        nodes = {0: "0"}
        for target in range(1, 4):
            parts = []
            for op, (source, end) in zip(genotype, cell_edges(4)):
                if end == target:
                    dead = OPS[op] == "none" or nodes[source] == "#"
                    parts.append(
                        "#"
                        if dead
                        else nodes[source]
                        if OPS[op] == "skip"
                        else f"({nodes[source]})@{op}"
                    )
            nodes[target] = "+".join(sorted(parts))
        found.add(nodes[3])
    assert len(found) == 6_466


def cell_values(nodes: int, genotype: tuple[int, ...], strided: bool) -> tuple[float, ...]:
    """Outputs of a cell of scalars, for every assignment of weights to its convolutions."""
    edges = cell_edges(nodes)
    orders = np.array(list(itertools.permutations(range(len(edges)))))
    slope = np.array([0.9, 1.3, 0.7, 1.1, 0.8, 1.7])[: len(edges)]
    shift = np.array([0.1, 0.5, 0.3, -0.2, 0.7, -0.4])[: len(edges)]
    values = {0: np.full(len(orders), 0.6)}
    for target in range(1, nodes):
        parts = []
        for place, (source, end) in enumerate(edges):
            op = OPS[genotype[place]]
            if end != target or op == "none" or source not in values:
                continue
            x = values[source]
            if (
                strided and source == 0
            ):  # what is left of the input by every second place, or by windows around it
                x = np.full(len(orders), 0.35 if op in ("skip", "conv1") else 0.5)
            own = orders[:, place]
            if op == "avg3":
                x = 0.77 * x  # linear, as a mean is
            elif op != "skip":
                stretch, move = (1.0, 0.0) if op == "conv1" else (1.37, 0.23)
                x = np.tanh(stretch * slope[own] * x + shift[own] + move)
            parts.append(x)
        if parts:
            values[target] = sum(parts)
    if nodes - 1 not in values:
        return (math.inf,)
    return tuple(np.unique(values[nodes - 1].round(8)).round(7))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("nodes", [3, 4])
def test_genotypes_are_one_class_exactly_when_they_can_compute_the_same(
    nodes: int, strided: bool
) -> None:
    """The values of a cell over all assignments of weights distinguish the classes."""
    known = representatives(nodes, strided)
    every = list(known)
    if nodes == 4:  # a part of the 15,625, with all members of the classes that it meets
        reachable = {
            known[every[int(index)]]
            for index in np.random.default_rng(0).integers(0, len(every), 120)
        }
        every = [genotype for genotype in every if known[genotype] in reachable]
    by_value: dict[tuple[float, ...], set[Any]] = {}
    for genotype in every:
        by_value.setdefault(cell_values(nodes, genotype, strided), set()).add(known[genotype])
    assert all(len(found) == 1 for found in by_value.values())
    assert len(by_value) == len({known[genotype] for genotype in every})
    assert all(known[known[genotype]] == known[genotype] for genotype in every)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_members_of_a_class_are_the_same_network(downsample: Any) -> None:
    """All 125 cells equal their representatives once the weights are moved to the other edges."""
    space = Conv4Micro(filters=2, downsample=downsample).build(IMAGES, "query_batch")
    x = inputs(IMAGES, 4)
    for genotype in genotypes(space):
        other = space.canonical(genotype)
        if other == genotype:
            continue
        params = space.learner(other).init(fold_in(1))
        wanted, learner = space.learner(other).apply(params, x), space.learner(genotype)
        errors = [
            (learner.apply(moved, x) - wanted).abs().max()
            for moved in transports(space, params, genotype)
        ]
        assert min(errors, default=torch.inf) < 1e-12, (genotype, other)


def transports(space: Space, params: Params, genotype: Any) -> list[Params]:
    """`params` under the names of `genotype`'s edges, in every way that fits."""
    wanted = {name: name.split(".") for name in space.shapes(genotype)}
    targets = sorted({(part[2], part[3]) for part in wanted.values() if part[0] == "cells"})
    sources = sorted({tuple(name.split(".")[2:4]) for name in params if name.startswith("cells.")})
    found = []
    for order in itertools.permutations(sources, len(targets)):
        pairs = dict(zip(targets, order))
        if any(target[1] != source[1] for target, source in pairs.items()):
            continue
        made = {}
        for name, part in wanted.items():
            if part[0] == "cells":
                part = [*part[:2], *pairs[part[2], part[3]], *part[4:]]
            made[name] = params[".".join(part)]
        found.append(made)
    return found


# what they are


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("component", [Conv4Micro, NB201Conv4])
def test_the_hand_made_cell_is_conv4(component: Any, downsample: Any) -> None:
    space = component(filters=5, downsample=downsample).build(IMAGES, "query_batch")
    learner, conv4 = (
        space.learner(space.default),
        Conv4(filters=5, downsample=downsample).build(IMAGES),
    )
    params = learner.init(fold_in(2))
    edge = next(place.name for place, choice in zip(space.places, space.default) if choice != NONE)
    blocks = ["stem", *(f"cells.{cell}.{edge}.conv3" for cell in range(3))]
    same = {name: params[name] for name in ("head.weight", "head.bias")}
    for number, block in enumerate(blocks):
        same |= {
            f"{part}s.{number}.{leaf}": params[f"{block}.{part}.{leaf}"]
            for part in ("conv", "norm")
            for leaf in ("weight", "bias")
        }
    x = inputs(IMAGES, 6)
    torch.testing.assert_close(
        learner.apply(params, x), conv4.apply(same, x), rtol=1e-12, atol=1e-12
    )
    assert set(same) == set(conv4.init(fold_in(0)))


def test_costs_are_those_counted_by_hand() -> None:
    micro = Conv4Micro(filters=16).build(image_spec(side=28, outputs=5), "query_batch")
    params = (9 + 3) * 16 + 3 * (9 * 16 + 3) * 16 + 17 * 5
    flops = 2 * (14 * 14 * 9 * 16 + (7 * 7 + 4 * 4 + 2 * 2) * 9 * 16 * 16 + 16 * 5)
    assert micro.cost(micro.default) == (params, flops)
    skips = (0, OPS.index("skip"), 0)
    assert micro.cost(skips) == ((9 + 3) * 16 + 17 * 5, 2 * (14 * 14 * 9 * 16 + 16 * 5))
    mlp = MLPReg().build(REGRESSION, "none")
    widest = (3, 3, 0, 1, 1, 1)  # 4 layers of 128, layer norm, Fourier inputs
    expected = (10 * 128 + 3 * 129 * 128 + 4 * 256 + 129, 2 * (9 * 128 + 3 * 128 * 128 + 128))
    assert mlp.cost(widest) == expected
    size = Conv4Size().build(image_spec(side=28, outputs=5), "query_batch")
    narrow = (0, 0, 0, 0, 2, 0)  # four times 8 channels, no norm, flattened 2 x 2
    assert size.cost(narrow).params == 10 * 8 + 3 * 73 * 8 + 33 * 5


@every_space
def test_the_cheapest_is_cheaper(component: Any, spec: EpisodeSpec, policy: str) -> None:
    space = component.build(spec, policy)
    found = [space.cost(genotype) for genotype in some(space, 8)]
    assert all(cost.params > 0 and cost.flops > 0 for cost in found)
    assert len({cost.flops for cost in found}) > 2


def test_a_narrow_network_starts_as_wide_as_its_own_fan_in_says() -> None:
    """Glorot's bound of the active widths, not of the supernet's."""
    space = Conv4Size().build(IMAGES, "query_batch")
    genotype = (0, 1, 0, 3, 0, 1)
    start = space.learner(genotype).init(fold_in(4))
    full = embed(space, genotype, start)
    widths = [1, *(WIDTHS[choice] for choice in genotype[:4])]
    for block, (inputs_, outputs) in enumerate(itertools.pairwise(widths)):
        weight = full[f"blocks.{block}.conv.weight"]
        bound = math.sqrt(6 / (9 * inputs_ + 9 * outputs))
        assert 0.9 * bound < weight.abs().max() <= bound
        assert torch.equal(weight[:outputs, :inputs_], start[f"blocks.{block}.conv.weight"])
        assert weight[outputs:].abs().sum() == 0 and weight[:, inputs_:].abs().sum() == 0


def test_operations_against_torch() -> None:
    x = inputs(image_spec(side=7), 3).permute(0, 2, 3, 1)
    for stride in (1, 2):
        wanted = torch.nn.functional.avg_pool2d(
            x.permute(0, 3, 1, 2), 3, stride, 1, count_include_pad=False
        )
        torch.testing.assert_close(avg3(x, stride), wanted.permute(0, 2, 3, 1))
    z = normal(fold_in(1), (3, 2, 2, 6), F64)
    weight, bias = normal(fold_in(2), (2, 6), F64)
    wanted = torch.nn.functional.group_norm(z.permute(0, 3, 1, 2), 1, weight, bias).permute(
        0, 2, 3, 1
    )
    torch.testing.assert_close(layer_norm(z, weight, bias), wanted)
    mask = torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=F64)
    part = layer_norm(z[..., :4], weight[:4], bias[:4])
    torch.testing.assert_close(layer_norm(z * mask, weight, bias, mask)[..., :4], part)
    assert layer_norm(z * mask, weight, bias, mask)[..., 4:].abs().sum() == 0


# one supernet, or a network of its own


@every_space
def test_masks_give_what_the_discrete_network_gives(
    component: Any, spec: EpisodeSpec, policy: str
) -> None:
    """Outputs and three steps of training of several architectures in one batch, and each alone."""
    space = component.build(spec, policy)
    chosen, loss_of = some(space, 4), cross_entropy if spec.classification else squared_error
    x = inputs(spec, 6)
    y = torch.arange(6) % 3 if spec.classification else normal(fold_in(6), (6, 1), F64)

    def trained(learner: Any, params: Params) -> Any:
        def loss(inner: Params, batch: Batch, step: int) -> torch.Tensor:
            return loss_of(learner.apply(inner, batch.x), batch.y)

        path = adapt(loss, params, momentum(0.1, 0.9), Batch(x, y), 3, keep=(3,))
        return path.points[0], learner.apply(path.points[0], x[:2], context=x), path.losses

    starts = [
        space.learner(genotype).init(fold_in(7, number)) for number, genotype in enumerate(chosen)
    ]
    full = [embed(space, genotype, start) for genotype, start in zip(chosen, starts)]
    stacked = {name: torch.stack([one[name] for one in full]) for name in full[0]}
    together = vmap(lambda params: trained(space.supernet, params))(stacked)
    for number, (genotype, start) in enumerate(zip(chosen, starts)):
        params, outputs, losses = trained(space.learner(genotype), start)
        mine = take(together, number)
        torch.testing.assert_close(mine[1], outputs, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(mine[2], losses, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(
            extract_subnet(space, genotype, mine[0]), params, rtol=1e-7, atol=1e-9
        )
        alone = trained(space.supernet, full[number])
        torch.testing.assert_close(mine[1], alone[1], rtol=1e-9, atol=1e-11)


@every_space
def test_parameters_go_into_the_supernet_and_come_back(
    component: Any, spec: EpisodeSpec, policy: str
) -> None:
    space = component.build(spec, policy)
    for genotype in some(space, 3):
        keys = fold_in(8, torch.arange(2))
        params = vmap(space.learner(genotype).init)(keys)
        full = embed(space, genotype, params)
        torch.testing.assert_close(extract_subnet(space, genotype, full), params, rtol=0, atol=0)
        names = {name for name in full if not name.startswith(MASK)}
        assert names == set(space.supernet.init(keys[0]))
        twice = insert_subnet(full, {name: 2 * value for name, value in params.items()})
        torch.testing.assert_close(
            extract_subnet(space, genotype, twice)["head.weight"], 2 * params["head.weight"]
        )
        masks = {name: value for name, value in full.items() if name.startswith(MASK)}
        expected = {MASK + place.name: choice for place, choice in zip(space.places, genotype)}
        assert {name: value[0].argmax() for name, value in masks.items()} == expected
        assert all(value.sum() == 2 for value in masks.values())


def test_what_is_no_representative_is_not_embedded() -> None:
    space = Conv4Micro(filters=2).build(IMAGES, "none")
    dead_end = (NONE, 1, 3)
    with pytest.raises(ValueError, match="representative"):
        embed(space, dead_end, space.learner(dead_end).init(fold_in(0)))
    for wrong in ((0, 1), (0, 1, 5), (0, -1, 1)):
        with pytest.raises(ValueError, match="each below"):
            space.learner(wrong)
        with pytest.raises(ValueError, match="each below"):
            one_hot(space, wrong)
