"""Learning curves over frozen test episodes: the same ones for every method."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.evaluate.ledger import require_phases
from metalearn.evaluate.statistics.students_t import t_quantile
from metalearn.labels import check_number, check_targets
from metalearn.losses import (
    BINS,
    accuracy,
    calibration_counts,
    calibration_error,
    calibration_floor,
    criterion,
    cross_entropy,
    gaussian_nll,
)
from metalearn.padding import zero_padding
from metalearn.rng import fold_in
from metalearn.tree import leaves, tree_map
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Key,
    Learned,
    Ledger,
    Meta,
    Method,
    NullLedger,
    TaskSource,
)

DIVERGED_FACTOR = 10.0  # a regression task has diverged above ten times the mean loss of step 0
FINGERPRINTED = 32  # episodes that the fingerprint covers
LOWEST = -(2.0**63)  # of int64: what a number that is not finite becomes


@dataclass(frozen=True)
class Curve:
    """One method on E episodes at P points.

    `scores` is accuracy for classes, and for regression the loss: squared error, unless the tasks
    have another."""

    steps: tuple[int, ...]
    metric: str
    scores: Tensor  # [E, P]
    loss: Tensor  # [E, P]
    diverged: Tensor  # [E, P] bool
    fingerprint: str = ""
    traits: dict[str, object] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)  # [E, ...]: facts of each task
    nll: Tensor | None = None  # [E, P], nats per label or target; NaN if none is predicted
    # [P], over the queries of all tasks whose predictions are finite; NaN likewise
    calibration_error: Tensor | None = None
    calibration_floor: Tensor | None = None  # [P], the same of a perfectly calibrated predictor

    @property
    def mean(self) -> Tensor:
        """[P], over all episodes: nothing is dropped."""
        mean: Tensor = self.scores.mean(0)
        return mean

    @property
    def ci95(self) -> Tensor:
        """[P], half width of the 95 % interval over tasks: t(0.975, E - 1) sd / sqrt(E)."""
        return mean_ci95(self.scores)

    @property
    def median(self) -> Tensor:
        """[P]."""
        return self.scores.quantile(0.5, dim=0)

    @property
    def diverged_share(self) -> Tensor:
        """[P], fraction of episodes that diverged."""
        return self.diverged.to(self.loss.dtype).mean(0)

    def converged(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(mean [P], ci95 [P]) of `values` [E, P] over episodes that did not diverge there."""
        return _mean_without(self.diverged, values)

    def likelihood(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(mean [P], ci95 [P], fraction of episodes left out [P]) of `nll`; None without one.

        An episode is left out if it diverged or has no finite value."""
        if self.nll is None or self.nll.isnan().all():
            return None
        left_out = self.diverged | ~self.nll.isfinite()
        return *_mean_without(left_out, self.nll), left_out.to(self.nll.dtype).mean(0)


def _mean_without(left_out: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [P], ci95 [P]) of `values` [E, P] without those left out; NaN if none is left."""
    included = (~left_out).to(values.dtype)
    count = included.sum(0)
    clean = torch.where(left_out, torch.zeros_like(values), values)
    mean = clean.sum(0) / count
    freedom = (count - 1).clamp(min=1)
    spread = (included * (clean - mean).square()).sum(0) / freedom
    return mean, _t_quantile(freedom) * (spread / count).sqrt()


def mean_ci95(values: Tensor) -> Tensor:
    """Return half the 95 % interval of a mean over tasks: [E, ...] -> [...]; NaN for one task."""
    freedom = torch.tensor(max(1.0, len(values) - 1.0), dtype=values.dtype)
    half: Tensor = _t_quantile(freedom) * values.std(0) / len(values) ** 0.5
    return half


def _t_quantile(freedom: Tensor) -> Tensor:
    quantiles = t_quantile(0.975, freedom.detach().cpu().numpy())
    return torch.as_tensor(quantiles, dtype=freedom.dtype, device=freedom.device)


class Scores(NamedTuple):
    """Scores of consecutive episodes."""

    accuracy: Tensor  # [E, P]
    loss: Tensor  # [E, P]
    finite: Tensor  # [E, P] bool
    nll: Tensor  # [E, P]; NaN if no probability is predicted
    counts: Tensor  # [E, P, BINS, 3] of losses.calibration_counts; NaN for regression
    notes: dict[str, Tensor]  # [E, ...]


def check_same_task(method: Method, spec: EpisodeSpec) -> None:
    """Raises ConfigError with every difference if the method was built for other tasks."""
    method_spec = method.spec
    names = ["kind", "ways", "x_shape", "outputs"]
    wrong = [name for name in names if getattr(method_spec, name) != getattr(spec, name)]
    if wrong:
        raise ConfigError(
            *(
                (
                    f"task.{name}",
                    f"the method was built for {getattr(method_spec, name)}, these episodes have "
                    f"{getattr(spec, name)}: build it with the spec of this source",
                )
                for name in wrong
            )
        )


def learning_curve(
    method: Method,
    meta: Meta,
    source: TaskSource,
    steps: Sequence[int] | int = (0, 1, 5, 10),
    episodes: int = 600,
    seed: int = 1,
    *,
    chunk: int = 50,
    ledger: Ledger | None = None,
    draw_seed: int = 0,
) -> Curve:
    """Learn `episodes` new tasks and score the queries at every point.

    The method never sees query labels. `chunk` tasks are adapted in parallel; up to rounding,
    results do not depend on it. `draw_seed` seeds the method's own randomness on the same tasks,
    such as the initialization of networks and heads, or the candidates of a search.

    Raises ConfigError if the method was built for another kind, ways, input shape or outputs, and
    MissingPhase if it does not write to the ledger.

    >>> source = ml.tasks.Sinusoid(shots=10).build(split="test")
    >>> method = ml.algorithms.MAML().build(ml.models.MLP().build(source.spec), source.spec)
    >>> meta = method.init(ml.fold_in(0, "init")).meta
    >>> ml.evaluate.learning_curve(method, meta, source, (0, 1), episodes=8).steps
    (0, 1)
    """
    points = curve_points(method, source, steps, episodes)
    scores = score_episodes(
        method,
        meta,
        source,
        points,
        (0, episodes),
        seed,
        chunk=chunk,
        ledger=ledger,
        draw_seed=draw_seed,
    )
    return make_curve(scores, source, points, seed)


def curve_points(
    method: Method, source: TaskSource, steps: Sequence[int] | int, episodes: int
) -> tuple[int, ...]:
    """Return the points of the curve; raises ConfigError if they cannot be measured."""
    check_same_task(method, source.spec)
    if source.spec.queries == 0:
        raise ConfigError(("task.queries", "must be >= 1 (got 0)"))
    if episodes < 1:
        raise ConfigError(("evaluate.episodes", f"must be >= 1 (got {episodes})"))
    return tuple(range(steps + 1)) if isinstance(steps, int) else tuple(steps)


def score_episodes(
    method: Method,
    meta: Meta,
    source: TaskSource,
    points: tuple[int, ...],
    span: tuple[int, int],
    seed: int,
    *,
    chunk: int,
    ledger: Ledger | None,
    draw_seed: int = 0,
) -> Scores:
    """Return the scores of episodes span[0] to span[1] - 1, of which there is at least one."""
    key, chunk = fold_in(seed, "episodes"), tasks_at_once(chunk, meta)
    rows = []
    notes: list[dict[str, Tensor]] = []
    for start in range(span[0], span[1], chunk):
        batch = _sample(source, key, min(chunk, span[1] - start), start)
        options = {"key": learn_keys(batch.info["key"], draw_seed)}
        task_ledger = NullLedger() if ledger is None else ledger
        if batch.query.weight is not None:
            options["query_weight"] = batch.query.weight
        learned = method.learn(meta, *learner_inputs(batch), points, ledger=task_ledger, **options)
        if not isinstance(task_ledger, NullLedger):  # which keeps nothing that could be missing
            require_phases(task_ledger, method.traits.phases)
        facts = {"source": batch.info["source"]} if "source" in batch.info else {}
        batch_notes = {**learned.notes, **facts}
        notes.append({name: value.detach() for name, value in batch_notes.items()})
        rows.append(_score(source.spec, learned, batch.query))
    accuracies, losses, finite, nll, counts = (torch.cat(part) for part in zip(*rows, strict=True))
    joined = {name: torch.cat([part[name] for part in notes]) for name in notes[0]}
    return Scores(accuracies, losses, finite, nll, counts, joined)


def _sample(source: TaskSource, key: Key, tasks: int, start: int) -> Episode:
    """Sample tasks; raises ConfigError for another number of them, and for wrong targets."""
    episodes = source.sample(key, tasks, start)
    check_number(episodes.support, tasks, f"sample(key, {tasks}, {start})")
    check_targets(episodes, source.spec)
    return episodes


def tasks_at_once(chunk: int, meta: Meta) -> int:
    """Return how many test tasks are learned in a batch: `chunk`, or as many as fit.

    The parameters of all of them, in several copies each, fit into 1 GiB. It is the same on every
    device: free memory varies over time, and rounding depends on the batch size."""
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves(meta))
    return min(chunk, max(1, 2**30 // (8 * size))) if size else chunk


def make_curve(
    scores: Scores, source: TaskSource, points: tuple[int, ...], seed: int | None
) -> Curve:
    """Return the curve of all episodes, in the order of their numbers.

    `seed` is that of the episodes, for their fingerprint; None: without a fingerprint."""
    return Curve(
        steps=points,
        metric=source.spec.metric,
        scores=scores.accuracy if source.spec.classification else scores.loss,
        loss=scores.loss,
        diverged=~scores.finite | _has_diverged(source.spec, scores.loss),
        fingerprint="" if seed is None else fingerprint(source, seed),
        notes=scores.notes,
        nll=scores.nll,
        calibration_error=calibration_error(scores.counts.sum(0)),
        calibration_floor=calibration_floor(scores.counts.sum(0)),
    )


def learner_inputs(episodes: Episode) -> tuple[Batch, Tensor]:
    """Return what a method receives of new tasks: support sets and query inputs, as copies.

    A source may cut support and query out of one tensor, and a view of it would give access to the
    labels of the queries."""
    return tree_map(torch.clone, episodes.support), episodes.query.x.clone()


def learn_keys(episodes: Key, draw_seed: int = 0) -> Key:
    """Return keys [T] for `learn` from the episode keys `info["key"]` [T]."""
    keys = fold_in(episodes, "learn")
    return fold_in(keys, draw_seed) if draw_seed else keys


def _score(spec: EpisodeSpec, learned: Learned, query: Batch) -> tuple[Tensor, ...]:
    """Score predictions [T, P, M, C] of [T, M, ...] -> tensors of `Scores`, each [T, P, ...]."""
    y, weight, predictions = zero_padding(query).y, query.weight, learned.predictions.detach()
    truth = y.unsqueeze(1).expand(*predictions.shape[:2], *y.shape[1:])
    if weight is not None:
        weight = weight.unsqueeze(1).expand(predictions.shape[:3])
        present = (weight > 0).view(*weight.shape, *[1] * (predictions.dim() - 3))
        predictions = torch.where(present, predictions, torch.zeros_like(predictions))
    finite = predictions.isfinite().flatten(2).all(-1)
    loss = criterion(spec)(predictions, truth, weight, batch_dims=2)
    undefined = torch.full_like(loss, float("nan"))
    if not spec.classification:
        nll, deviation = undefined, learned.log_deviation
        if deviation is not None:
            nll = gaussian_nll(predictions, deviation.detach(), truth, weight, batch_dims=2)
        counts = undefined[..., None, None].expand(*loss.shape, BINS, 3)
        return torch.where(finite, undefined, torch.zeros_like(loss)), loss, finite, nll, counts
    correct = accuracy(predictions, truth, weight, batch_dims=2)
    nll = cross_entropy(predictions, truth, weight, batch_dims=2)
    counts = calibration_counts(predictions, truth, weight, batch_dims=2)
    counts = torch.where(finite[..., None, None], counts, torch.zeros_like(counts))
    # A prediction that is not finite scores as wrong: it is counted as diverged and never dropped.
    return torch.where(finite, correct, torch.zeros_like(correct)), loss, finite, nll, counts


def _has_diverged(spec: EpisodeSpec, losses: Tensor) -> Tensor:
    if spec.classification or callable(spec.loss):  # an own loss may be negative
        return ~losses.isfinite()
    return ~(losses <= DIVERGED_FACTOR * losses[:, :1].mean())


def fingerprint(source: TaskSource, seed: int) -> str:
    """Return the SHA-256 over x and y of the first 32 test episodes, rounded to 1e-4.

    Generated episodes are sampled on the CPU: sines of another device differ in the last bit, which
    changes how some numbers round."""
    if source.spec.device != "cpu":
        source = getattr(source, "on_cpu", lambda: source)()
    episode: Episode = source.sample(fold_in(seed, "episodes"), FINGERPRINTED)
    digest = hashlib.sha256()
    for part in (episode.support, episode.query):
        weight = () if part.weight is None else (part.weight,)
        for values in (part.x, part.y, *weight):
            array = values.detach().to("cpu", torch.float64).numpy()
            # missing targets, which a loss of one's own leaves out
            whole = np.nan_to_num(np.round(array * 1e4), nan=LOWEST, posinf=LOWEST, neginf=LOWEST)
            digest.update(whole.astype("<i8").tobytes())
    return digest.hexdigest()
