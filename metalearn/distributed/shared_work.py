"""What several processes do together: the steps of a training, and the episodes of a learning
curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from metalearn.config.build import Parts, method_for
from metalearn.config.experiment import Experiment
from metalearn.distributed.team import Does, Team, letter, opened, tree_of
from metalearn.errors import ConfigError
from metalearn.evaluate.curves import (
    Curve,
    Scores,
    curve_points,
    learning_curve,
    make_curve,
    score_episodes,
)
from metalearn.evaluate.ensemble import ensemble
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors.executor import Advance
from metalearn.executors.nonfinite import guarded
from metalearn.executors.precision import with_precision, with_tf32
from metalearn.executors.sharded import make_split_advance, share_of
from metalearn.rng import fold_in
from metalearn.types import Key, Ledger, Meta, MetaState, Method, Metrics, TaskSource


class Asked(NamedTuple):
    """Which tasks a learning curve is about."""

    split: str  # train_tasks, valid or test: an attribute of Parts
    episodes: int
    seed: int
    starts: int = 0


def check(team: Team, experiment: Experiment, parts: Parts) -> None:
    """ConfigError for what so many processes cannot do."""
    if team.size == 1:
        return
    run, problems = experiment.run, list[tuple[str, str]]()
    if parts.method.task_grad is not None and run.tasks_per_step < team.size:
        text = (
            f"is {run.tasks_per_step}, fewer than the {team.size} processes of --devices: "
            f"each needs a task"
        )
        problems.append(("run.tasks_per_step", text))
    if run.device.startswith("cuda:"):
        problems.append(
            (
                "run.device",
                f"is {run.device}, and every process has a card of its own: say cuda, or auto",
            )
        )
    if problems:
        raise ConfigError(*problems)


def splits(team: Team, method: Method) -> bool:
    """Whether the steps of a method are shared out: those that go task by task."""
    return team.size > 1 and method.task_grad is not None


def own_advance(team: Team, experiment: Experiment, parts: Parts) -> Advance:
    """This process's half of every step; the state holds the lanes of its own tasks."""
    run, source = experiment.run, parts.train
    first, count = share_of(run.tasks_per_step, team.rank, team.size)

    def draw(key: Key) -> Any:
        return source.sample(key, count, first)

    advance = make_split_advance(
        with_precision(parts.method, run.precision, run.checkpoint_inner, parts.device),
        draw,
        fold_in(run.seeds[0], "train"),
        run.tasks_per_step,
        count,
        parts.device,
        run.executor,
        run.chunk,
        team.total,
    )
    return guarded(with_tf32(advance, run.precision), run.on_nan)


def led_advance(team: Team, experiment: Experiment, parts: Parts) -> Advance:
    """Rank 0: an Advance that the other processes take part in; a state that it did not return is
    sent to them.
    """
    advance, last = own_advance(team, experiment, parts), None
    first, count = share_of(experiment.run.tasks_per_step, team.rank, team.size)

    def step(state: MetaState, number: int) -> tuple[MetaState, Metrics]:
        nonlocal last
        if last is None:
            team.order(Does.TRAIN, content=letter({"experiment": experiment.resolved()}))
        if state is not last:
            team.order(Does.STATE, content=letter({}, state))
            state = team.own(state, first, count)
        team.order(Does.STEP, number)
        last, metrics = advance(state, number)
        return last, metrics

    return step


def curve(
    team: Team,
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    asked: Asked,
    ledger: Ledger,
) -> Curve:
    """The learning curve of one meta, or of the ensemble of several, its episodes shared out by
    their numbers.
    """
    source: TaskSource = getattr(parts, asked.split)
    method, evaluate = tested(experiment, source, metas), experiment.evaluate
    if team.size == 1:
        return learning_curve(
            method,
            metas[0],
            source,
            evaluate.steps,
            asked.episodes,
            asked.seed,
            chunk=evaluate.chunk,
            ledger=ledger,
            starts=asked.starts,
        )
    points = curve_points(method, source, evaluate.steps, asked.episodes)
    books = isinstance(ledger, CostLedger)
    words = {
        "experiment": experiment.resolved(),
        "asked": asked._asdict(),
        "metas": len(metas),
        "books": books,
    }
    team.order(Does.CURVE, content=letter(words, list(metas)))
    mine = own_scores(team, method, metas[0], source, points, experiment, asked, ledger)
    assert mine is not None  # rank 0 has the first episode
    parts_of_all = [mine]
    for content in team.collect(b"")[1:]:
        if content:
            said, named = opened(content)
            parts_of_all.append(tree_of(named, mine))
            _charge(ledger, said["spent"])
    return make_curve(_joined(parts_of_all), source, points, asked.seed)


def tested(experiment: Experiment, source: TaskSource, metas: Sequence[Meta]) -> Method:
    method = method_for(experiment, source.spec)
    return method if len(metas) == 1 else ensemble(method, metas)


def own_scores(
    team: Team,
    method: Method,
    meta: Meta,
    source: TaskSource,
    points: tuple[int, ...],
    experiment: Experiment,
    asked: Asked,
    ledger: Ledger,
) -> Scores | None:
    """The scores of this process's episodes; None where there are fewer episodes than processes."""
    first, count = share_of(asked.episodes, team.rank, team.size)
    if not count:
        return None
    span, chunk = (first, first + count), experiment.evaluate.chunk
    return score_episodes(
        method,
        meta,
        source,
        points,
        span,
        asked.seed,
        chunk=chunk,
        ledger=ledger,
        starts=asked.starts,
    )


def _joined(found: Sequence[Scores]) -> Scores:
    notes = {name: torch.cat([part.notes[name] for part in found]) for name in found[0].notes}
    columns = zip(*((part.accuracy, part.loss, part.finite) for part in found), strict=True)
    accuracy, loss, finite = (torch.cat(column) for column in columns)
    return Scores(accuracy, loss, finite, notes)


def _charge(ledger: Ledger, spent: dict[str, dict[str, float]]) -> None:
    """What another process has computed; its seconds are those of rank 0's clock already."""
    if isinstance(ledger, CostLedger):
        for phase, entry in spent.items():
            counts = {
                name: value
                for name, value in entry.items()
                if name not in ("seconds", "peak_bytes")
            }
            ledger.add(phase, 0.0, **counts)
