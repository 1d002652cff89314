"""Architecture search for one task: on its support set alone, then training the winner on all of
it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import adapt
from metalearn.inner.method import OverTasks, points_of, task_keys
from metalearn.inner.rules import momentum, sgd
from metalearn.losses import criterion
from metalearn.nas.conv4_micro import Conv4Micro
from metalearn.nas.fit import (
    FREE,
    Batching,
    Folds,
    check_shots,
    chunks,
    divide,
    losses_of,
    mean_and_error,
)
from metalearn.nas.random_search import RandomSearch
from metalearn.nas.search import Data, Judge, Score, Searcher, Trial, choose, lockstep
from metalearn.nas.space import Genotype, Space
from metalearn.nas.tables import SearcherChoice, SpaceChoice
from metalearn.rng import fold_in
from metalearn.tree import take, vmap
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Key,
    Learned,
    Learner,
    Ledger,
    Meta,
    MetaState,
    Method,
    NullLedger,
    Params,
    Traits,
    UpdateRule,
)


class PerTaskNAS(MethodComponent):
    """Search an architecture for every new task on its support set, then train the winner from
    scratch.

    A candidate's score is the mean held-out loss over leave-shots-out folds of the support set; at
    one shot, where nothing can be held out, the mean training loss along its path (Ru et al. 2021).
    Of the candidates within `standard_errors` of the best the cheapest wins, and is trained on the
    whole support set from a fresh start: those steps are the points of the learning curve. Nothing
    is learned across tasks; the model section gives the normalisation policy alone.
    """

    can_be_contained: ClassVar[bool] = False

    family: ClassVar[str] = "search"
    name: Literal["per_task_nas"] = option("per_task_nas", "the method")
    space: SpaceChoice = option(Conv4Micro(), "what is searched", acts="adapt")
    searcher: SearcherChoice = option(RandomSearch(), "who searches", acts="adapt")
    candidates: int = option(
        16, "budget of a task, in full trainings of a candidate", acts="adapt", ge=1, le=100_000
    )
    search_steps: int = option(
        20, "steps of a candidate's full training on one fold", acts="adapt", ge=1, le=100_000
    )
    inner_lr: float = option(0.1, "step size of candidates and winner", acts="adapt", gt=0)
    inner_momentum: float = option(
        0.0, "share of the last step that is kept; 0: none", acts="adapt", ge=0, lt=1
    )
    folds: int = option(
        5, "most folds of a support set with several shots", acts="adapt", ge=2, le=1000
    )
    repeats: int = option(
        2, "starts that a candidate is trained from at one shot", acts="adapt", ge=1, le=1000
    )
    standard_errors: float = option(
        1.0, "how far from the best a cheaper candidate wins; 0: the best wins", acts="adapt", ge=0
    )
    batching: Batching = option(
        "bucket", "train together what is of one architecture, or all by masks", acts="adapt"
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, normalised as `learner` is; `meta_steps` changes nothing
        here.
        """
        del meta_steps
        policy: Any = learner.normalisation
        space = self.space.build(spec, policy)

        def init(key: Key) -> MetaState:
            return MetaState({}, {}, None, torch.zeros((), dtype=spec.dtype, device=spec.device))

        return Method(
            spec=spec,
            traits=Traits(
                consumes="nothing",
                transductive=policy == "query_batch",
                normalisation=policy,
                host_side=True,
                phases=("search", "retrain", "predict"),
            ),
            init=init,
            learn=self._learn(space),
        )

    def _learn(self, space: Space) -> Callable[..., Learned]:
        spec = space.spec
        rule = rule_of(self)
        search, train = searched(self, space, rule), Winners(space, rule)

        def learn(
            meta: Meta,
            support: Batch,
            query_x: Tensor,
            steps: int | Sequence[int],
            key: Key | None = None,
            ledger: Ledger | None = None,
        ) -> Learned:
            check_shots(spec, support)
            points, keys = points_of(steps), task_keys(key, support.x.shape[0]).to(support.x.device)
            book = NullLedger() if ledger is None else ledger
            counts = {"tasks": len(keys), "labels": len(keys) * support.x.shape[1], **FREE}
            trials, wins = book.run(
                "search", search, support, fold_in(keys, "search"), book, **counts
            )
            said = train(
                [win.genotype for win in wins],
                support,
                query_x,
                points,
                fold_in(keys, "retrain"),
                book,
            )
            return Learned(said, notes(space, trials, wins))

        return learn


def rule_of(options: PerTaskNAS) -> UpdateRule:
    """What trains candidates and winners."""
    return (
        momentum(options.inner_lr, options.inner_momentum)
        if options.inner_momentum
        else sgd(options.inner_lr)
    )


Found = tuple[list[list[Trial]], list[Trial]]


def searched(options: PerTaskNAS, space: Space, rule: UpdateRule) -> Callable[..., Found]:
    """(support [T, ...], keys [T], ledger) -> (trials, winner) of each task; what is asked together
    runs together.
    """
    spec, searcher = space.spec, _searcher(options, space)
    measure = losses_of(space, rule, options.batching)
    divided = vmap(lambda support, key: divide(spec, support, key, options.folds, options.repeats))

    def run(support: Batch, keys: Key, book: Ledger) -> Found:
        folds: Folds = divided(support, fold_in(keys, "folds"))

        def judge(jobs: Sequence[tuple[int, Genotype, float]]) -> list[Score]:
            work = [
                (task, genotype, max(1, round(share * options.search_steps)))
                for task, genotype, share in jobs
            ]
            found = [mean_and_error(losses) for losses in measure(work, folds, book)]
            return [Score(-mean, error) for mean, error in found]

        checked: Judge = judge
        searches = [
            searcher(
                fold_in(keys[task], "searcher"), options.candidates, Data(take(folds, task), book)
            )
            for task in range(support.x.shape[0])
        ]
        trials = lockstep(searches, checked, options.candidates)
        return trials, [choose(space, one, options.standard_errors) for one in trials]

    return run


def _searcher(options: PerTaskNAS, space: Space) -> Searcher:
    made: Searcher = options.searcher.build(space)
    return made


class Winners:
    """Training of the chosen networks on whole support sets; tasks with one architecture are
    trained side by side.
    """

    def __init__(self, space: Space, rule: UpdateRule) -> None:
        self._space, self._rule = space, rule
        self._made = functools.cache(self._pair)

    def __call__(
        self,
        chosen: Sequence[Genotype],
        support: Batch,
        query_x: Tensor,
        points: tuple[int, ...],
        keys: Key,
        book: Ledger,
    ) -> Tensor:
        """Outputs [T, P, M, C] of task t's network, `chosen[t]`, on query_x [T, M, *X]."""
        said: dict[int, Tensor] = {}
        for genotype in dict.fromkeys(chosen):
            tasks = [task for task, other in enumerate(chosen) if other == genotype]
            for piece in chunks(len(tasks), support.x.device.type):
                lanes = tasks[piece]
                data, x, key = take(support, lanes), query_x[lanes], keys[lanes]
                train, answer = self._made(genotype, points)
                spent = len(lanes) * points[-1]
                counts = {
                    "gradient_steps": spent,
                    "examples": spent * data.x.shape[1],
                    "tasks": len(lanes),
                }
                items = book.run(
                    "retrain", train, key, data, **counts
                )  # the labels are those that the search paid for
                said.update(
                    zip(lanes, book.run("predict", answer, items, data, x, tasks=len(lanes)))
                )
        return torch.stack([said[task] for task in range(len(chosen))])

    def _pair(
        self, genotype: Genotype, points: tuple[int, ...]
    ) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
        learner, loss_of = self._space.learner(genotype), criterion(self._space.spec)

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def to(points: tuple[int, ...]) -> Callable[..., list[Params]]:
            def train(_: None, key: Key, support: Batch) -> list[Params]:
                return adapt(
                    loss, learner.init(key), self._rule, support, points[-1], keep=points
                ).points

            return train

        def answer(_: None, items: list[Params], support: Batch, query_x: Tensor) -> Tensor:
            return torch.stack(
                [learner.apply(params, query_x, context=support.x) for params in items]
            )

        return OverTasks(to, points, None), OverTasks(lambda _: answer, (0,), None)


def notes(
    space: Space, trials: Sequence[Sequence[Trial]], wins: Sequence[Trial]
) -> dict[str, Tensor]:
    """What the report asks of a search, [T, ...]: the winner, its score and cost, and every
    candidate's score.

    Where tasks tried different numbers of candidates rows end with NaN, and genotypes with -1.
    """
    like = {"dtype": space.spec.dtype, "device": space.spec.device}
    cost = [space.cost(win.genotype) for win in wins]
    numbers = {
        "score": [win.score.value for win in wins],
        "score_error": [win.score.error for win in wins],
        "best_score": [
            max(trial.score.value for trial in one if trial.share == win.share)
            for one, win in zip(trials, wins)
        ],
        "candidates": [float(len(one)) for one in trials],
        "architecture_flops": [float(one.flops) for one in cost],
        "architecture_params": [float(one.params) for one in cost],
    }
    found = {name: torch.tensor(values, **like) for name, values in numbers.items()}  # type: ignore[arg-type]
    width, nothing = max(map(len, trials)), (-1,) * len(space.places)
    rest = [width - len(one) for one in trials]
    scores = [
        [trial.score.value for trial in one] + [math.nan] * more for one, more in zip(trials, rest)
    ]
    tried = [
        [trial.genotype for trial in one] + [nothing] * more for one, more in zip(trials, rest)
    ]
    shares = [[trial.share for trial in one] + [math.nan] * more for one, more in zip(trials, rest)]
    found["trial_share"] = torch.tensor(shares, **like)  # type: ignore[arg-type]
    found["trial_score"] = torch.tensor(scores, **like)  # type: ignore[arg-type]
    where = space.spec.device
    found["trial_genotype"] = torch.tensor(tried, device=where)
    return found | {"genotype": torch.tensor([win.genotype for win in wins], device=where)}
