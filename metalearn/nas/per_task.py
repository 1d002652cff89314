"""Architecture search for one task on its support set alone, then training of the winner."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from metalearn.component import FirstTasks, MethodComponent, option
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import OverTasks, as_step_indices, task_keys
from metalearn.inner.requirements import require_no_padding
from metalearn.inner.rules import momentum, sgd
from metalearn.nas.fit import (
    FREE,
    Batching,
    Folds,
    check_shots,
    chunks,
    count_lanes,
    divide,
    make_losses,
    mean_and_error,
)
from metalearn.nas.searchers import SearcherChoice
from metalearn.nas.searchers.random_search import RandomSearch, control_methods
from metalearn.nas.searchers.search import Data, Request, Score, Trial, choose, run_searches
from metalearn.nas.selection import candidates_on_queries
from metalearn.nas.spaces import SpaceChoice
from metalearn.nas.spaces.conv4_micro import Conv4Micro
from metalearn.nas.spaces.space import Genotype, Space
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
    """Search for an architecture on the support set of each new task, then train it from scratch.

    A candidate's score is the mean held-out loss over leave-shots-out folds of the support set.
    With one shot, where nothing can be held out, it is the mean training loss along the path (Ru et
    al. 2021). The cheapest candidate within `standard_errors` of the best wins. It is trained from
    new initial parameters on the whole support set: those steps are the points of the learning
    curve. Nothing is learned across tasks. Of the model section only the normalisation policy is
    used.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.nas.PerTaskNAS(space=ml.nas.MLPReg(), candidates=4).build(learner, source.spec)
    >>> method.traits.phases
    ('search', 'retrain', 'predict')
    """

    family: ClassVar[str] = "search"
    can_be_contained: ClassVar[bool] = False

    name: Literal["per_task_nas"] = option("per_task_nas", "The method.")
    space: SpaceChoice = option(Conv4Micro(), "Search space.", acts="adapt")
    searcher: SearcherChoice = option(RandomSearch(), "Search algorithm.", acts="adapt")
    candidates: int = option(
        16, "Budget per task, in full training runs of a candidate.", acts="adapt", ge=1, le=100_000
    )
    search_steps: int = option(
        20,
        "Steps of a full training run of a candidate on one fold.",
        acts="adapt",
        ge=1,
        le=100_000,
    )
    inner_lr: float = option(
        0.1, "Step size for the candidates and the chosen network.", acts="adapt", gt=0
    )
    inner_momentum: float = option(
        0.0,
        "Momentum for the candidates and the chosen network; 0: plain gradient descent.",
        acts="adapt",
        ge=0,
        lt=1,
    )
    folds: int = option(5, "Maximum number of folds of a support set.", acts="adapt", ge=2, le=1000)
    repeats: int = option(
        2,
        "Training runs per candidate with one shot, instead of folds.",
        acts="adapt",
        ge=1,
        le=1000,
    )
    standard_errors: float = option(
        1.0,
        "Choose the cheapest candidate within this many standard errors of the best score; "
        "0: the best.",
        acts="adapt",
        ge=0,
    )
    batching: Batching = option(
        "bucket",
        "Train the candidates of one architecture together, or all candidates together with masks.",
        acts="adapt",
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, normalised as `learner`; `meta_steps` has no effect."""
        del meta_steps
        require_no_padding(self.name, spec)
        policy: Any = learner.normalisation

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
            learn=self._learn(self.space.build(spec, policy)),
        )

    @property
    def controls(self) -> dict[str, tuple[str, MethodComponent]]:
        return control_methods(self, self.candidates)

    def selection(
        self, method: Method, notes: dict[str, Tensor], tasks: FirstTasks, steps: int
    ) -> dict[str, Any] | None:
        spec, policy = method.spec, cast(Any, method.traits.normalisation)
        train = Winners(self.space.build(spec, policy), self.inner_rule())
        one_unit = count_lanes(spec, self.folds, self.repeats)[1]
        return candidates_on_queries(train, spec, notes, tasks, steps, one_unit=one_unit)

    def inner_rule(self) -> UpdateRule:
        """The update rule that trains candidates and winners."""
        if self.inner_momentum:
            return momentum(self.inner_lr, self.inner_momentum)
        return sgd(self.inner_lr)

    def _learn(self, space: Space) -> Callable[..., Learned]:
        search, train = make_search(self, space), Winners(space, self.inner_rule())

        def learn(
            meta: Meta,
            support: Batch,
            query_x: Tensor,
            steps: int | Sequence[int],
            key: Key | None = None,
            ledger: Ledger | None = None,
        ) -> Learned:
            require_no_padding(self.name, space.spec, support)
            check_shots(space.spec, support)
            points, keys = (
                as_step_indices(steps),
                task_keys(key, support.x.shape[0]).to(support.x.device),
            )
            ledger = NullLedger() if ledger is None else ledger
            counts = {"tasks": len(keys), "labels": len(keys) * support.x.shape[1], **FREE}
            search_keys, train_keys = (fold_in(keys, name) for name in ("search", "retrain"))
            trials, wins = ledger.run("search", search, support, search_keys, ledger, **counts)
            genotypes = [win.genotype for win in wins]
            predictions = train(genotypes, support, query_x, points, train_keys, ledger)
            return Learned(predictions, notes(space, trials, wins))

        return learn


SearchResult = tuple[list[list[Trial]], list[Trial]]


def make_search(options: PerTaskNAS, space: Space) -> Callable[..., SearchResult]:
    """Return (support [T, ...], keys [T], ledger) -> (trials, winner) of each task.

    Candidates of all tasks that are asked for at the same time are trained together."""
    spec, searcher = space.spec, options.searcher.build(space)
    measure = make_losses(space, options.inner_rule(), options.batching)
    divide_tasks = vmap(
        lambda support, key: divide(spec, support, key, options.folds, options.repeats)
    )

    def run(support: Batch, keys: Key, ledger: Ledger) -> SearchResult:
        folds: Folds = divide_tasks(support, fold_in(keys, "folds"))

        def evaluate(requests: Sequence[Request]) -> list[Score]:
            jobs = [
                (task, genotype, max(1, round(share * options.search_steps)))
                for task, genotype, share in requests
            ]
            statistics = [mean_and_error(losses) for losses in measure(jobs, folds, ledger)]
            return [Score(-mean, error) for mean, error in statistics]

        searches = [
            searcher(key, options.candidates, Data(take(folds, task), ledger))
            for task, key in enumerate(fold_in(keys, "searcher"))
        ]
        trials = run_searches(searches, evaluate, options.candidates)
        return trials, [choose(space, tried, options.standard_errors) for tried in trials]

    return run


class Winners:
    """Training of the chosen networks on whole support sets, batched by architecture."""

    def __init__(self, space: Space, rule: UpdateRule) -> None:
        self._space, self._rule = space, rule
        self._functions = functools.cache(self._make)

    def __call__(
        self,
        chosen: Sequence[Genotype],
        support: Batch,
        query_x: Tensor,
        points: tuple[int, ...],
        keys: Key,
        ledger: Ledger,
    ) -> Tensor:
        """Return outputs [T, P, M, C] of each task's network `chosen[t]` on query_x [T, M, *X]."""
        outputs: dict[int, Tensor] = {}
        for genotype in dict.fromkeys(chosen):
            tasks = [task for task, candidate in enumerate(chosen) if candidate == genotype]
            train, predict = self._functions(genotype, points)
            for chunk in chunks(len(tasks), support.x.device.type):
                lanes = tasks[chunk]
                data, x, key = take(support, lanes), query_x[lanes], keys[lanes]
                steps, count = len(lanes) * points[-1], {"tasks": len(lanes)}
                # The labels were counted by the search.
                counts = {"gradient_steps": steps, "examples": steps * data.x.shape[1], **count}
                weights = ledger.run("retrain", train, key, data, **counts)
                values = ledger.run("predict", predict, weights, data, x, **count)
                outputs.update(zip(lanes, values))
        return torch.stack([outputs[task] for task in range(len(chosen))])

    def _make(
        self, genotype: Genotype, points: tuple[int, ...]
    ) -> tuple[Callable[..., Any], Callable[..., Tensor]]:
        learner, rule = self._space.learner(genotype), self._rule
        loss = support_loss(learner, self._space.spec)

        def make(points: tuple[int, ...]) -> Callable[..., list[Params]]:
            def train(_: None, key: Key, support: Batch) -> list[Params]:
                start = learner.init(key)
                return adapt(loss, start, rule, support, points[-1], keep=points).points

            return train

        def predict(_: None, trained: list[Params], support: Batch, query_x: Tensor) -> Tensor:
            outputs = [learner.apply(params, query_x, context=support.x) for params in trained]
            return torch.stack(outputs)

        return OverTasks(make, points, None), OverTasks(lambda _: predict, (0,), None)


def notes(
    space: Space, trials: Sequence[Sequence[Trial]], wins: Sequence[Trial]
) -> dict[str, Tensor]:
    """Return notes of a search for the report, [T, ...]: winner, score, cost, every candidate.

    If tasks tried different numbers of candidates, rows are padded with NaN, genotypes with -1."""
    like: dict[str, Any] = {"dtype": space.spec.dtype, "device": space.spec.device}
    cost = [space.cost(win.genotype) for win in wins]
    numbers: dict[str, list[Any]] = {
        "score": [win.score.value for win in wins],
        "score_error": [win.score.error for win in wins],
        "best_score": [
            max(trial.score.value for trial in task_trials if trial.share == win.share)
            for task_trials, win in zip(trials, wins)
        ],
        "candidates": [float(len(task_trials)) for task_trials in trials],
        "architecture_flops": [float(network.flops) for network in cost],
        "architecture_params": [float(network.params) for network in cost],
    }
    padding = Trial((-1,) * len(space.places), math.nan, Score(math.nan))
    width = max(map(len, trials))
    rows = [[*task_trials, *[padding] * (width - len(task_trials))] for task_trials in trials]
    numbers["trial_share"] = [[trial.share for trial in row] for row in rows]
    numbers["trial_score"] = [[trial.score.value for trial in row] for row in rows]
    tensors = {name: torch.tensor(values, **like) for name, values in numbers.items()}
    tried, won = [[trial.genotype for trial in row] for row in rows], [win.genotype for win in wins]
    tensors["trial_genotype"] = torch.tensor(tried, device=space.spec.device)
    return tensors | {"genotype": torch.tensor(won, device=space.spec.device)}
