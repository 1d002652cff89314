"""A space of architectures: what a genotype is, and the two ways to build what it stands for."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metalearn import rng
from metalearn.models.functional import module_learner
from metalearn.models.norm import Policy
from metalearn.tree import STATS
from metalearn.types import EpisodeSpec, Key, Learner, Params

Genotype = tuple[int, ...]  # one number a place: which of its words
Shapes = dict[str, tuple[int, ...]]
# Masks ride where running statistics ride: under "stats.", so that no gradient step moves them. The
# supernet's module has them as buffers of its part `mask`.
MASK = STATS + "mask."


class Place(NamedTuple):
    """One decision of a genotype."""

    name: str
    words: tuple[str, ...]


class Cost(NamedTuple):
    """What one network costs."""

    params: int  # numbers that gradients move
    # forward pass of one example: products of matrices and convolutions, 2 a multiplication and
    # addition
    flops: int


class Space(NamedTuple):
    """A finite set of networks for tasks of one shape; a Space is built for a spec and a
    normalisation policy.
    """

    name: str
    spec: EpisodeSpec
    places: tuple[Place, ...]
    canonical: Callable[
        [Genotype], Genotype
    ]  # the representative of all genotypes that compute the same
    learner: Callable[[Genotype], Learner]  # built discretely: only what the genotype names exists
    # every choice at once; each choice is weighted by its number in params["stats.mask.<place>"]
    supernet: Learner
    shapes: Callable[
        [Genotype | None], Shapes
    ]  # of a learner's parameters; None: the supernet's, without masks
    cost: Callable[[Genotype], Cost]
    default: Genotype  # the hand-made network of the field

    @property
    def size(self) -> int:
        """Genotypes, counted before any two that compute the same are taken for one."""
        return math.prod(len(place.words) for place in self.places)


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
    """A Space from one function that builds a module: for a genotype, or for None the supernet with
    all choices.
    """

    def build(genotype: Genotype | None) -> Learner:
        return module_learner(lambda: module(genotype), spec, policy=policy, init=init)

    @functools.cache
    def learner(genotype: Genotype) -> Learner:
        check(places, genotype)
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
    """Parameters and forward FLOPs of one example, by torch's counter on tensors without data."""
    with torch.device("meta"):
        params = {name: torch.empty(shape) for name, shape in shapes.items()}
        x = torch.empty((1, *learner.x_shape))
    with FlopCounterMode(display=False) as counter:
        learner.apply(params, x)
    moving = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith(STATS))
    return Cost(moving, counter.get_total_flops())


def check(places: tuple[Place, ...], genotype: Genotype) -> None:
    """ValueError where a genotype is not of this space."""
    if len(genotype) != len(places) or not all(
        0 <= choice < len(place.words) for choice, place in zip(genotype, places)
    ):
        sizes = [len(place.words) for place in places]
        raise ValueError(f"genotype {genotype} should have one number a place, each below {sizes}")


def genotypes(space: Space) -> Iterator[Genotype]:
    """All of them, in order."""
    return itertools.product(*(range(len(place.words)) for place in space.places))


def classes(space: Space) -> list[Genotype]:
    """The representatives: one genotype of each set that computes the same, in order."""
    return [genotype for genotype in genotypes(space) if space.canonical(genotype) == genotype]


def at(space: Space, index: int) -> Genotype:
    """Genotype number `index` in the order of `genotypes`."""
    choices = []
    for place in reversed(space.places):
        index, choice = divmod(index, len(place.words))
        choices.append(choice)
    return tuple(reversed(choices))


def words(space: Space, genotype: Genotype) -> str:
    """A genotype in words, such as `0-1 conv3, 0-2 none, 1-2 skip`."""
    return ", ".join(
        f"{place.name} {place.words[choice]}" for place, choice in zip(space.places, genotype)
    )


def walk(space: Space, key: Key) -> Iterator[Genotype]:
    """All representatives in random order: each class is as likely as any other, and none comes
    twice.
    """
    for index in rng.permutation(rng.fold_in(key, "walk"), space.size).tolist():
        genotype = at(space, index)
        if space.canonical(genotype) == genotype:
            yield genotype


def mutate(space: Space, key: Key, genotype: Genotype) -> Genotype:
    """The representative of `genotype` with another word at one place, all neighbours equally
    likely.
    """
    neighbours = [
        (*genotype[:place], choice, *genotype[place + 1 :])
        for place, options in enumerate(space.places)
        for choice in range(len(options.words))
        if choice != genotype[place]
    ]
    return space.canonical(neighbours[int(rng.integers(key, (), len(neighbours)))])


def one_hot(space: Space, genotype: Genotype) -> Params:
    """The genotype as data: a mask [words] for each place, one where the word is chosen, under the
    supernet's names.
    """
    check(space.places, genotype)
    like = {"dtype": space.spec.dtype, "device": space.spec.device}
    masks = {}
    for place, choice in zip(space.places, genotype):
        mask = torch.zeros(len(place.words), **like)  # type: ignore[call-overload]
        mask[choice] = 1
        masks[MASK + place.name] = mask
    return masks


def softened(arch: Params, temperature: float | Tensor = 1.0) -> Params:
    """Masks from free numbers (Liu et al. 2019, equation 2): softmax(arch / temperature) for each
    place.
    """
    return {MASK + name: torch.softmax(value / temperature, -1) for name, value in arch.items()}


def hardened(space: Space, arch: Params) -> Genotype:
    """The genotype with the strongest word at each place, brought to its representative."""
    return space.canonical(tuple(int(arch[place.name].argmax()) for place in space.places))


def embed(space: Space, genotype: Genotype, params: Params) -> Params:
    """A network's parameters among the supernet's: padded with zeros, masks included; leaves may
    have leading axes.

    The start of a narrow layer keeps the scale of its own fan-in. ValueError for a genotype that is
    no representative: its dead ends would not be dead in the supernet.
    """
    if space.canonical(genotype) != genotype:
        raise ValueError(
            f"genotype {genotype} should be its representative {space.canonical(genotype)}"
        )
    own, like = space.shapes(genotype), params["head.weight"]
    lead = tuple(like.shape[: like.dim() - 2])
    full: Params = {}
    for name, shape in space.shapes(None).items():
        if name in own:
            room = [
                (0, wide - narrow) for wide, narrow in zip(reversed(shape), reversed(own[name]))
            ]
            full[name] = F.pad(params[name], [side for pair in room for side in pair])
        else:
            full[name] = like.new_zeros((*lead, *shape))
    masks = one_hot(space, genotype)
    return full | {name: mask.to(like).expand((*lead, *mask.shape)) for name, mask in masks.items()}


def carve(space: Space, genotype: Genotype, full: Params) -> Params:
    """A network's parameters out of the supernet's: the first channels of each leaf that it has;
    lanes [L, ...].
    """
    part = {}
    for name, shape in space.shapes(genotype).items():
        part[name] = full[name]
        for axis, size in enumerate(reversed(shape)):
            part[name] = part[name].narrow(-1 - axis, 0, size)
    return part


def put_back(full: Params, part: Params) -> Params:
    """The supernet's parameters with a carved network's in their places; lanes [L, ...]."""
    new = dict(full)
    for name, value in part.items():
        whole = full[name].clone()
        whole[tuple(slice(size) for size in value.shape)] = value
        new[name] = whole
    return new
