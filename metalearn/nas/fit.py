"""Training candidates from scratch on folds of a support set, many at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import OverTasks
from metalearn.losses import criterion
from metalearn.nas.spaces.space import Genotype, Space, embed
from metalearn.rng import fold_in
from metalearn.tree import take, tree_map, vmap
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Ledger, Params, UpdateRule

Batching = Literal["bucket", "masks"]
Job = tuple[int, Genotype, int]  # task, genotype, training steps
Group = TypeVar("Group", bound=Hashable)
# Counts of host work whose parts are recorded one by one.
FREE = {"flops": 0, "flops_elementwise": 0, "flops_architecture": 0}
# Trainings in one call: on a CPU their memory should fit into its caches.
LANES = {"cpu": 32, "cuda": 1024}


class Folds(NamedTuple):
    """A support set divided L times; leaves have a leading L, or T and L."""

    train: Batch  # x [L, B, *X]
    held_out: Batch  # x [L, H, *X]; where nothing can be held out, the training examples again
    keys: Key  # [L], for the initial parameters of each lane: the same for all candidates


def count_lanes(spec: EpisodeSpec, folds: int, repeats: int) -> tuple[int, bool]:
    """Return (L, whether examples are held out): the largest number of equal folds up to `folds`.

    With one shot L is `repeats`. If no number from 2 to `folds` divides the K shots, every shot is
    held out in turn."""
    if spec.shots == 1:
        return repeats, False
    divisors = [count for count in range(2, min(folds, spec.shots) + 1) if spec.shots % count == 0]
    return (max(divisors) if divisors else spec.shots), True


def divide(spec: EpisodeSpec, support: Batch, key: Key, folds: int, repeats: int) -> Folds:
    """Return leave-shots-out folds of one task's support set x [N*K, *X].

    Each fold holds out the same number of examples of every class. With one shot a held-out example
    would be the whole class: then there are L repeats with other initial parameters, and nothing is
    held out."""
    lanes, holds = count_lanes(spec, folds, repeats)
    keys = fold_in(key, torch.arange(lanes, device=key.device))
    if not holds:
        repeated = tree_map(lambda leaf: leaf.expand(lanes, *leaf.shape), support)
        return Folds(repeated, repeated, keys)
    table, shots = shots_by_class(spec, support), range(spec.shots)
    held_out = [[shot for shot in shots if shot % lanes == lane] for lane in range(lanes)]
    training = [[shot for shot in shots if shot % lanes != lane] for lane in range(lanes)]
    indices = (
        torch.stack([table[:, chosen].flatten() for chosen in parts])
        for parts in (training, held_out)
    )
    train, validation = (Batch(support.x[rows], support.y[rows]) for rows in indices)
    return Folds(train, validation, keys)


def halves(spec: EpisodeSpec, support: Batch) -> tuple[Batch, Batch]:
    """Split a support set in two: the first ceil(K / 2) shots of every class, and the remaining."""
    table, cut = shots_by_class(spec, support), (spec.shots + 1) // 2
    first, second = table[:, :cut].flatten(), table[:, cut:].flatten()
    return Batch(support.x[first], support.y[first]), Batch(support.x[second], support.y[second])


def shots_by_class(spec: EpisodeSpec, support: Batch) -> Tensor:
    """Return rows of a support set [N*K, *X] by class, for labels in any order: [N, K]."""
    if not spec.classification:
        return torch.arange(spec.shots, device=support.x.device).unsqueeze(0)
    return support.y.argsort(stable=True).reshape(spec.ways, spec.shots)


def check_shots(spec: EpisodeSpec, support: Batch) -> None:
    """Raise ConfigError if support sets [T, N*K, *X] do not have K shots of every class."""
    if support.x.shape[1] != spec.ways * spec.shots:
        text = f"is {spec.shots}, but support sets have {support.x.shape[1]} examples"
        raise ConfigError(("task.shots", f"{text}: build the method with the spec of these tasks"))


def fit(
    learner: Learner, spec: EpisodeSpec, rule: UpdateRule, points: Sequence[int]
) -> Callable[[Params, Batch, Tensor], tuple[Tensor, Tensor]]:
    """Return the training of one network.

    (initial params, train, x [M, *X]) -> (outputs on x at the points [P, M, C], losses [S])"""
    loss = support_loss(learner, spec)

    def run(start: Params, train: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        path = adapt(loss, start, rule, train, points[-1], keep=points)
        outputs = [learner.apply(params, x, context=train.x) for params in path.points]
        return torch.stack(outputs), path.losses

    return run


def held_out_loss(
    learner: Learner, spec: EpisodeSpec, rule: UpdateRule, steps: int
) -> Callable[[Params, Batch, Batch], Tensor]:
    """Return the loss of a candidate on one lane: (initial params, train, held-out) -> [].

    The loss of the held-out examples after training; with one shot the mean training loss along the
    path (Ru et al. 2021, arXiv:2006.04492, equation 1, divided by the number of steps)."""
    run, loss_fn = fit(learner, spec, rule, (steps,)), criterion(spec)

    def lane_loss(start: Params, train: Batch, held_out: Batch) -> Tensor:
        outputs, losses = run(start, train, held_out.x)
        return losses.mean() if spec.shots == 1 else loss_fn(outputs[0], held_out.y)

    return lane_loss


# (jobs, folds with leading T and L, ledger) -> losses [L] of each job
Losses = Callable[[Sequence[Job], Folds, Ledger], list[Tensor]]


def make_losses(space: Space, rule: UpdateRule, batching: Batching) -> Losses:
    """Return the losses of candidates on the folds of their tasks, in the order of the jobs.

    bucket: candidates of one architecture are trained together, in one graph of that architecture;
    masks: all candidates in one graph of the supernet, the architectures as data. Both give the
    losses of training each candidate alone."""
    return _by_bucket(space, rule) if batching == "bucket" else _by_masks(space, rule)


def _by_bucket(space: Space, rule: UpdateRule) -> Losses:
    @functools.cache
    def lane_losses(genotype: Genotype, steps: int) -> Callable[..., Tensor]:
        learner = space.learner(genotype)

        def make(points: tuple[int, ...]) -> Callable[..., Tensor]:
            loss = held_out_loss(learner, space.spec, rule, points[-1])
            return lambda _, key, train, held_out: loss(learner.init(key), train, held_out)

        return OverTasks(make, (steps,), None)

    def losses(jobs: Sequence[Job], folds: Folds, ledger: Ledger) -> list[Tensor]:
        losses_by_job: dict[int, Tensor] = {}
        groups = _groups([(genotype, steps) for _, genotype, steps in jobs])
        for (genotype, steps), numbers in groups.items():
            flat = _flat(take(folds, [jobs[number][0] for number in numbers]))
            counts = {"candidates": len(numbers)}
            function = lane_losses(genotype, steps)
            values = _in_chunks(function, flat.keys, flat, steps, ledger, counts)
            losses_by_job.update(zip(numbers, values.reshape(len(numbers), -1)))
        return [losses_by_job[number] for number in range(len(jobs))]

    return losses


def _by_masks(space: Space, rule: UpdateRule) -> Losses:
    @functools.cache
    def lane_losses(steps: int) -> Callable[..., Tensor]:
        def make(points: tuple[int, ...]) -> Callable[..., Tensor]:
            loss = held_out_loss(space.supernet, space.spec, rule, points[-1])
            return lambda _, params, train, held_out: loss(params, train, held_out)

        return OverTasks(make, (steps,), None)

    def start(genotype: Genotype, keys: Key) -> Params:
        return embed(space, genotype, vmap(space.learner(genotype).init)(keys))

    def losses(jobs: Sequence[Job], folds: Folds, ledger: Ledger) -> list[Tensor]:
        losses_by_job: dict[int, Tensor] = {}
        for steps, numbers in _groups([steps for _, _, steps in jobs]).items():
            lanes = take(folds, [jobs[number][0] for number in numbers])
            starts = [start(jobs[number][1], lanes.keys[row]) for row, number in enumerate(numbers)]
            params = tree_map(lambda *parts: torch.cat(parts), *starts)
            # Of a supernet's FLOPs it is unknown how many belong to one architecture.
            counts = {"candidates": len(numbers), "flops_architecture": None}
            values = _in_chunks(lane_losses(steps), params, _flat(lanes), steps, ledger, counts)
            losses_by_job.update(zip(numbers, values.reshape(len(numbers), -1)))
        return [losses_by_job[number] for number in range(len(jobs))]

    return losses


def _groups(group_keys: Sequence[Group]) -> dict[Group, list[int]]:
    groups: dict[Group, list[int]] = {}
    for number, group_key in enumerate(group_keys):
        groups.setdefault(group_key, []).append(number)
    return groups


def _flat(folds: Folds) -> Folds:
    """[n, L, ...] -> [n * L, ...]."""
    flat: Folds = tree_map(lambda leaf: leaf.flatten(0, 1), folds)
    return flat


def _in_chunks(
    function: Callable[..., Tensor],
    first: Any,
    folds: Folds,
    steps: int,
    ledger: Ledger,
    counts: dict[str, Any],
) -> Tensor:
    """Run `function(first, train, held_out)` over the leading axis in chunks, as search cost."""
    count, examples = folds.train.x.shape[:2]
    results = []
    for chunk in chunks(count, folds.train.x.device.type):
        lanes = len(range(count)[chunk])
        counts |= {"gradient_steps": lanes * steps, "examples": lanes * steps * examples}
        args = (take(arg, chunk) for arg in (first, folds.train, folds.held_out))
        results.append(ledger.run("search", function, *args, **counts))
        counts["candidates"] = 0
    return torch.cat(results)


def chunks(count: int, device: str) -> list[slice]:
    """Split `count` lanes into the fewest chunks of equal length that a device runs at once."""
    number = math.ceil(count / LANES.get(device, LANES["cuda"]))
    size = math.ceil(count / number)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def mean_and_error(losses: Tensor) -> tuple[float, float]:
    """Return mean and standard error of losses [L]; (infinity, 0) if one is not finite."""
    if not bool(losses.isfinite().all()):
        return math.inf, 0.0
    count = losses.shape[0]
    error = float(losses.std()) / math.sqrt(count) if count > 1 else 0.0
    return float(losses.mean()), error
