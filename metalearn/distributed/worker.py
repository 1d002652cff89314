"""The processes other than rank 0: they wait for orders, do their share, and write nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment, parse
from metalearn.distributed.shared_work import Asked, own_advance, own_scores, tested
from metalearn.distributed.team import Does, Team, letter, opened, tree_of
from metalearn.distributed.world import LOST
from metalearn.errors import RankLost
from metalearn.evaluate.curves import curve_points
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors.executor import Advance
from metalearn.executors.sharded import share_of
from metalearn.inner.method import broadcast_task_state
from metalearn.logger import log
from metalearn.machine import cores, set_threads
from metalearn.rng import fold_in
from metalearn.types import MetaState, NullLedger


def follow(team: Team) -> int:
    """Do what rank 0 orders until it says END; returns the exit code."""
    with team.listening():
        try:
            return _followed(_Follower(team))
        except RankLost as error:
            log.info(f"{error}: ending, too")
            return 75 if team.stop else LOST


@dataclass
class _Follower:
    """What this process has in hand between two orders."""

    team: Team
    experiment: Experiment | None = None
    parts: Parts | None = None
    built: str = ""  # what the parts were built of
    advance: Advance | None = None
    state: MetaState | None = None

    def open(self, data: dict[str, Any], *, to_train: bool) -> tuple[Experiment, Parts]:
        """The experiment of an order and its parts, which are built anew only where what they are
        made of changed.
        """
        experiment = parse(data).experiments[0]
        set_threads(experiment.run.threads or max(1, cores() // self.team.local_size))
        made_of = json.dumps([data[name] for name in ("task", "evaluate", "run")], sort_keys=True)
        if self.parts is None or to_train or made_of != self.built:
            self.parts, self.built = build(experiment), made_of
        self.experiment = experiment
        return experiment, self.parts


def _followed(one: _Follower) -> int:
    while True:
        order = one.team.next_order()
        if order.does is Does.END:
            return order.number
        _DO[order.does](one, order.number, order.content)


def _train(one: _Follower, number: int, content: bytes) -> None:
    experiment, parts = one.open(opened(content)[0]["experiment"], to_train=True)
    one.advance, one.state = own_advance(one.team, experiment, parts), None


def _state(one: _Follower, number: int, content: bytes) -> None:
    assert one.experiment is not None and one.parts is not None
    run = one.experiment.run
    like = broadcast_task_state(
        one.parts.method.init(fold_in(run.seeds[0], "init")), run.tasks_per_step
    )
    whole = tree_of(opened(content)[1], like)
    one.state = one.team.own(whole, *share_of(run.tasks_per_step, one.team.rank, one.team.size))


def _step(one: _Follower, number: int, content: bytes) -> None:
    assert one.advance is not None and one.state is not None
    one.state, _ = one.advance(one.state, number)


def _lanes(one: _Follower, number: int, content: bytes) -> None:
    assert one.state is not None
    one.team.collect(letter({}, one.state.lanes))


def _curve(one: _Follower, number: int, content: bytes) -> None:
    words, named = opened(content)
    experiment, parts = one.open(words["experiment"], to_train=False)
    asked = Asked(**words["asked"])
    source = getattr(parts, asked.split)
    like = tested(experiment, source, [None]).init(fold_in(0, "like")).meta
    metas = tree_of(named, [like] * words["metas"])
    method = tested(experiment, source, metas)
    points = curve_points(method, source, experiment.evaluate.steps, asked.episodes)
    book = CostLedger(parts.device) if words["books"] else NullLedger()
    found = own_scores(one.team, method, metas[0], source, points, experiment, asked, book)
    spent = book.totals() if isinstance(book, CostLedger) else {}
    one.team.collect(b"" if found is None else letter({"spent": spent}, found))


_DO: dict[Does, Callable[[_Follower, int, bytes], None]] = {
    Does.TRAIN: _train,
    Does.STATE: _state,
    Does.STEP: _step,
    Does.LANES: _lanes,
    Does.CURVE: _curve,
}
