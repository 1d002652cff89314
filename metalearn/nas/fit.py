"""Training candidates from scratch: folds of a support set, and two ways of training many
candidates at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt
from metalearn.inner.method import OverTasks
from metalearn.losses import criterion
from metalearn.nas.space import Genotype, Space, embed
from metalearn.rng import fold_in
from metalearn.tree import take, tree_map, vmap
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Ledger, Params, UpdateRule

Batching = Literal["bucket", "masks"]
Job = tuple[int, Genotype, int]  # task, genotype, training steps
Name = TypeVar("Name", bound=Hashable)
FREE = {
    "flops": 0,
    "flops_elementwise": 0,
    "flops_architecture": 0,
}  # of work on the host, whose parts say their own
LANES = {
    "cpu": 32,
    "cuda": 1024,
}  # trainings in one graph: on a CPU what they hold should stay in its caches


class Folds(NamedTuple):
    """A support set divided L times; leaves have a leading L, or T and L."""

    train: Batch  # x [L, B, *X]
    held: Batch  # x [L, H, *X]; where nothing can be held out, the training examples again
    keys: Key  # [L], for the start of each lane's network: one for all candidates


def lanes_of(spec: EpisodeSpec, folds: int, repeats: int) -> tuple[int, bool]:
    """(L, whether examples are held out): the largest number of equal folds up to `folds`; at one
    shot, repeats.

    K shots that no number from 2 to `folds` divides are left out one by one.
    """
    if spec.shots == 1:
        return repeats, False
    even = [count for count in range(2, min(folds, spec.shots) + 1) if spec.shots % count == 0]
    return (max(even) if even else spec.shots), True


def divide(spec: EpisodeSpec, support: Batch, key: Key, folds: int, repeats: int) -> Folds:
    """Leave-shots-out folds of one task's support set x [N*K, *X]: each holds out the same number
    of every class.

    At one shot leaving a class's example out would leave the class out: L repeats with other
    starts, nothing held out."""
    lanes, holds = lanes_of(spec, folds, repeats)
    keys = fold_in(key, torch.arange(lanes, device=key.device))
    if not holds:
        whole = tree_map(lambda leaf: leaf.expand(lanes, *leaf.shape), support)
        return Folds(whole, whole, keys)
    table, shots = shots_by_class(spec, support), range(spec.shots)
    held = [[shot for shot in shots if shot % lanes == lane] for lane in range(lanes)]
    kept = [[shot for shot in shots if shot % lanes != lane] for lane in range(lanes)]
    places = (
        torch.stack([table[:, choice].flatten() for choice in choices]) for choices in (kept, held)
    )
    train, out = (Batch(support.x[index], support.y[index]) for index in places)
    return Folds(train, out, keys)


def halves(spec: EpisodeSpec, support: Batch) -> tuple[Batch, Batch]:
    """One task's support set in two: the first ceil(K / 2) shots of every class, and the others."""
    table, cut = shots_by_class(spec, support), (spec.shots + 1) // 2
    first, second = table[:, :cut].flatten(), table[:, cut:].flatten()
    return Batch(support.x[first], support.y[first]), Batch(support.x[second], support.y[second])


def shots_by_class(spec: EpisodeSpec, support: Batch) -> Tensor:
    """Places of a support set [N*K, *X], whose labels come in any order: [N, K], row n those of
    class n.
    """
    if not spec.classification:
        return torch.arange(spec.shots, device=support.x.device).unsqueeze(0)
    return support.y.argsort(stable=True).reshape(spec.ways, spec.shots)


def check_shots(spec: EpisodeSpec, support: Batch) -> None:
    """ConfigError where support sets [T, N*K, *X] do not have the K shots of every class that folds
    are made of.
    """
    if support.x.shape[1] != spec.ways * spec.shots:
        text = (
            f"is {spec.shots}, but support sets have {support.x.shape[1]} examples: build "
            f"with their own spec"
        )
        raise ConfigError(("task.shots", text))


def fit(
    learner: Learner, spec: EpisodeSpec, rule: UpdateRule, points: Sequence[int]
) -> Callable[[Params, Batch, Tensor], tuple[Tensor, Tensor]]:
    """Train one network: (start, train, x [M, *X]) -> (outputs at the points [P, M, C], losses of
    the steps [S]).
    """
    loss_of = criterion(spec)

    def loss(params: Params, batch: Batch, step: int) -> Tensor:
        return loss_of(learner.apply(params, batch.x), batch.y)

    def run(start: Params, train: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        path = adapt(loss, start, rule, train, points[-1], keep=points)
        return torch.stack(
            [learner.apply(params, x, context=train.x) for params in path.points]
        ), path.losses

    return run


def held_loss(
    learner: Learner, spec: EpisodeSpec, rule: UpdateRule, steps: int
) -> Callable[[Params, Batch, Batch], Tensor]:
    """What one lane says of a candidate, lower is better: (start, train, held) -> [].

    The loss of the held-out examples after training; at one shot the mean of the training losses
    along the way (Ru et al. 2021, arXiv:2006.04492, equation 1, divided by the number of steps).
    """
    run, loss_of = fit(learner, spec, rule, (steps,)), criterion(spec)

    def one(start: Params, train: Batch, held: Batch) -> Tensor:
        said, losses = run(start, train, held.x)
        return losses.mean() if spec.shots == 1 else loss_of(said[0], held.y)

    return one


Losses = Callable[
    [Sequence[Job], Folds, Ledger], list[Tensor]
]  # folds with leading T, L -> [L] for each job


def losses_of(space: Space, rule: UpdateRule, batching: Batching) -> Losses:
    """Losses of candidates on the folds of their tasks, in the order of the jobs.

    bucket: candidates of one architecture are trained side by side, in one graph of that
    architecture; masks: all candidates in one graph of the supernet, the architectures as data.
    Both equal training them alone."""
    spec = space.spec

    @functools.cache
    def bucket(genotype: Genotype, steps: int) -> Callable[..., Tensor]:
        learner = space.learner(genotype)

        def to(points: tuple[int, ...]) -> Callable[..., Tensor]:
            one = held_loss(learner, spec, rule, points[-1])
            return lambda _, key, train, held: one(learner.init(key), train, held)

        return OverTasks(to, (steps,), None)

    @functools.cache
    def masked(steps: int) -> Callable[..., Tensor]:
        def to(points: tuple[int, ...]) -> Callable[..., Tensor]:
            one = held_loss(space.supernet, spec, rule, points[-1])
            return lambda _, params, train, held: one(params, train, held)

        return OverTasks(to, (steps,), None)

    def start(genotype: Genotype, keys: Key) -> Params:
        return embed(space, genotype, vmap(space.learner(genotype).init)(keys))

    def by_bucket(jobs: Sequence[Job], folds: Folds, book: Ledger) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for (genotype, steps), numbers in _groups(
            [(genotype, steps) for _, genotype, steps in jobs]
        ).items():
            lanes = take(folds, [jobs[number][0] for number in numbers])
            function = bucket(genotype, steps)
            flat = _flat(lanes)
            counts = {"candidates": len(numbers)}
            said = _in_chunks(function, (flat.keys, flat.train, flat.held), steps, book, counts)
            found.update(zip(numbers, said.reshape(len(numbers), -1)))
        return [found[number] for number in range(len(jobs))]

    def by_masks(jobs: Sequence[Job], folds: Folds, book: Ledger) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for steps, numbers in _groups([steps for _, _, steps in jobs]).items():
            lanes = take(folds, [jobs[number][0] for number in numbers])
            starts = [start(jobs[number][1], lanes.keys[row]) for row, number in enumerate(numbers)]
            params = tree_map(lambda *parts: torch.cat(parts), *starts)
            flat = _flat(lanes)
            # Of what a supernet does, the operations that a mask takes out are no architecture's
            # own work.
            counts = {"candidates": len(numbers), "flops_architecture": None}
            said = _in_chunks(masked(steps), (params, flat.train, flat.held), steps, book, counts)
            found.update(zip(numbers, said.reshape(len(numbers), -1)))
        return [found[number] for number in range(len(jobs))]

    return by_bucket if batching == "bucket" else by_masks


def _groups(names: Sequence[Name]) -> dict[Name, list[int]]:
    groups: dict[Name, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    return groups


def _flat(folds: Folds) -> Folds:
    """[n, L, ...] -> [n * L, ...]."""
    flat: Folds = tree_map(lambda leaf: leaf.flatten(0, 1), folds)
    return flat


def _in_chunks(
    function: Callable[..., Tensor],
    args: tuple[Any, ...],
    steps: int,
    book: Ledger,
    counts: dict[str, Any],
) -> Tensor:
    """`function` over the leading axis of `args`, some lanes at a time; each call is spent on the
    ledger as search.
    """
    train: Batch = args[1]
    count, examples = train.x.shape[:2]
    pieces = []
    for piece in chunks(count, train.x.device.type):
        lanes = len(range(count)[piece])
        done = {"gradient_steps": lanes * steps, "examples": lanes * steps * examples}
        pieces.append(
            book.run("search", function, *(take(arg, piece) for arg in args), **counts, **done)
        )
        counts = counts | {"candidates": 0}
    return torch.cat(pieces)


def chunks(count: int, device: str) -> list[slice]:
    """`count` lanes in as few, equally long pieces as a device takes at once."""
    pieces = math.ceil(count / LANES.get(device, LANES["cuda"]))
    size = math.ceil(count / pieces)
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def mean_and_error(losses: Tensor) -> tuple[float, float]:
    """Mean of L losses and its standard error; infinity where one is not finite, error 0 for a
    single one.
    """
    if not bool(losses.isfinite().all()):
        return math.inf, 0.0
    count = losses.shape[0]
    error = float(losses.std()) / math.sqrt(count) if count > 1 else 0.0
    return float(losses.mean()), error
