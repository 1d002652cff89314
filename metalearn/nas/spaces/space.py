"""A space of architectures: genotypes, and their networks built alone or inside a supernet."""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metalearn import rng
from metalearn.component import Component
from metalearn.models.functional import module_learner
from metalearn.models.norm import Policy
from metalearn.tree import STATS
from metalearn.types import EpisodeSpec, Key, Learner, Params

Genotype = tuple[int, ...]  # for each place the index of one of its choices
Shapes = dict[str, tuple[int, ...]]
# Masks are stored with the running statistics, under "stats.", so that no gradient step updates
# them. The supernet's module has them as buffers of its submodule `mask`.
MASK = STATS + "mask."


class Place(NamedTuple):
    """One decision of a genotype."""

    name: str
    choices: tuple[str, ...]


class Cost(NamedTuple):
    """The cost of one network."""

    params: int  # trainable parameters
    flops: int  # forward pass of one example: 2 for each multiply-add of products and convolutions


class Space(NamedTuple):
    """A finite set of networks, built for an EpisodeSpec and a normalisation policy."""

    name: str
    spec: EpisodeSpec
    places: tuple[Place, ...]
    # Maps a genotype to the representative of all genotypes that compute the same function.
    canonical: Callable[[Genotype], Genotype]
    learner: Callable[[Genotype], Learner]  # the network alone, without the other choices
    # All choices at once, each weighted by its entry of params["stats.mask.<place>"].
    supernet: Learner
    # Shapes of a learner's parameters; None: the supernet's, without masks.
    shapes: Callable[[Genotype | None], Shapes]
    cost: Callable[[Genotype], Cost]
    default: Genotype  # the hand-designed network of the literature

    @property
    def size(self) -> int:
        """Number of genotypes, those that compute the same function counted separately."""
        return math.prod(len(place.choices) for place in self.places)


class SpaceComponent(Component):
    """The options of a space."""

    name: str

    @abstractmethod
    def build(self, spec: EpisodeSpec, policy: Policy) -> Space:
        """The space for tasks of `spec`, normalised by `policy`."""


def make_space(
    name: str,
    spec: EpisodeSpec,
    places: tuple[Place, ...],
    canonical: Callable[[Genotype], Genotype],
    module: Callable[[Genotype | None], nn.Module],
    default: Genotype,
    policy: Policy,
    init: Literal["uniform", "xavier"],
) -> Space:
    """Return a Space from one function, `module(genotype)`; `module(None)` is the supernet."""

    def build(genotype: Genotype | None) -> Learner:
        return module_learner(lambda: module(genotype), spec, policy=policy, init=init)

    @functools.cache
    def learner(genotype: Genotype) -> Learner:
        check_genotype(places, genotype)
        return build(genotype)

    supernet = build(None)

    @functools.cache
    def shapes(genotype: Genotype | None) -> Shapes:
        start = (supernet if genotype is None else learner(genotype)).init(rng.fold_in(0, "shapes"))
        return {leaf: tuple(value.shape) for leaf, value in start.items()}

    @functools.cache
    def cost(genotype: Genotype) -> Cost:
        return count(learner(genotype), shapes(genotype))

    return Space(
        name, spec, places, functools.cache(canonical), learner, supernet, shapes, cost, default
    )


def count(learner: Learner, shapes: Shapes) -> Cost:
    """Count parameters and forward FLOPs of one example, with torch's counter on meta tensors."""
    with torch.device("meta"):
        params = {name: torch.empty(shape) for name, shape in shapes.items()}
        x = torch.empty((1, *learner.x_shape))
    with FlopCounterMode(display=False) as counter:
        learner.apply(params, x)
    sizes = [math.prod(shape) for name, shape in shapes.items() if not name.startswith(STATS)]
    return Cost(sum(sizes), counter.get_total_flops())


def check_genotype(places: tuple[Place, ...], genotype: Genotype) -> None:
    """Raise ValueError for a genotype that is not of this space."""
    if len(genotype) != len(places) or not all(
        0 <= choice < len(place.choices) for choice, place in zip(genotype, places)
    ):
        sizes = [len(place.choices) for place in places]
        text = f"genotype {genotype} must have one number per place, each below {sizes}"
        raise ValueError(text)


def genotypes(space: Space) -> Iterator[Genotype]:
    """Return all genotypes, in order."""
    return itertools.product(*(range(len(place.choices)) for place in space.places))


def classes(space: Space) -> list[Genotype]:
    """Return the representatives, in order: one genotype for each function of the space."""
    return [genotype for genotype in genotypes(space) if space.canonical(genotype) == genotype]


def genotype_at(space: Space, index: int) -> Genotype:
    """Return genotype number `index` in the order of `genotypes`."""
    choices = []
    for place in reversed(space.places):
        index, choice = divmod(index, len(place.choices))
        choices.append(choice)
    return tuple(reversed(choices))


def describe(space: Space, genotype: Genotype) -> str:
    """Return a genotype as text, such as `0-1 conv3, 0-2 none, 1-2 skip`."""
    return ", ".join(
        f"{place.name} {place.choices[choice]}" for place, choice in zip(space.places, genotype)
    )


def shuffled(space: Space, key: Key) -> Iterator[Genotype]:
    """Yield all representatives in uniformly random order, each once."""
    for index in rng.permutation(rng.fold_in(key, "walk"), space.size).tolist():
        genotype = genotype_at(space, index)
        if space.canonical(genotype) == genotype:
            yield genotype


def mutate(space: Space, key: Key, genotype: Genotype) -> Genotype:
    """Change `genotype` at one random place; returns the representative of the new genotype.

    All neighbours are equally likely."""
    neighbours = [
        (*genotype[:index], choice, *genotype[index + 1 :])
        for index, place in enumerate(space.places)
        for choice in range(len(place.choices))
        if choice != genotype[index]
    ]
    return space.canonical(neighbours[int(rng.integers(key, (), len(neighbours)))])


def one_hot(space: Space, genotype: Genotype) -> Params:
    """Return the genotype as masks of the supernet: one-hot [choices] for each place."""
    check_genotype(space.places, genotype)
    like = {"dtype": space.spec.dtype, "device": space.spec.device}
    masks = {}
    for place, choice in zip(space.places, genotype):
        mask = torch.zeros(len(place.choices), **like)  # type: ignore[call-overload]
        mask[choice] = 1
        masks[MASK + place.name] = mask
    return masks


def softmax_masks(arch: Params, temperature: float | Tensor = 1.0) -> Params:
    """Return masks softmax(arch / temperature) for each place (Liu et al. 2019, equation 2)."""
    return {MASK + name: torch.softmax(value / temperature, -1) for name, value in arch.items()}


def argmax_genotype(space: Space, arch: Params) -> Genotype:
    """Return the representative of the genotype with the largest weight at each place."""
    return space.canonical(tuple(int(arch[place.name].argmax()) for place in space.places))


def embed(space: Space, genotype: Genotype, params: Params) -> Params:
    """Return the supernet's parameters, with masks, that compute the same as a network.

    Leaves are padded with zeros and may have leading axes. The initial values of a narrow layer
    keep the scale of its own fan-in. Raises ValueError for a genotype that is not canonical:
    operations that do not reach its output would reach the supernet's."""
    if space.canonical(genotype) != genotype:
        text = f"genotype {genotype} must be its representative {space.canonical(genotype)}"
        raise ValueError(text)
    shapes, like = space.shapes(genotype), params["head.weight"]
    lead = tuple(like.shape[: like.dim() - 2])
    full: Params = {}
    for name, shape in space.shapes(None).items():
        if name in shapes:
            sizes = zip(reversed(shape), reversed(shapes[name]))
            full[name] = F.pad(
                params[name], [pad for large, small in sizes for pad in (0, large - small)]
            )
        else:
            full[name] = like.new_zeros((*lead, *shape))
    masks = one_hot(space, genotype)
    return full | {name: mask.to(like).expand((*lead, *mask.shape)) for name, mask in masks.items()}


def extract_subnet(space: Space, genotype: Genotype, full: Params) -> Params:
    """Return a network's parameters from the supernet's: the first channels of each leaf.

    Leaves have a leading L."""
    part = {}
    for name, shape in space.shapes(genotype).items():
        part[name] = full[name]
        for axis, size in enumerate(reversed(shape)):
            part[name] = part[name].narrow(-1 - axis, 0, size)
    return part


def insert_subnet(full: Params, part: Params) -> Params:
    """Return the supernet's parameters with those of a subnet; leaves have a leading L."""
    updated = dict(full)
    for name, value in part.items():
        leaf = full[name].clone()
        leaf[tuple(slice(size) for size in value.shape)] = value
        updated[name] = leaf
    return updated
