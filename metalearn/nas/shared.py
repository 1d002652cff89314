"""Architecture search once for a family of tasks; another method then learns with the winner."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from metalearn.component import CHOICE, MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.requirements import require_no_padding
from metalearn.losses import criterion
from metalearn.nas.architecture import Architecture
from metalearn.nas.fit import FREE, Folds
from metalearn.nas.searchers import SearcherChoice
from metalearn.nas.searchers.random_search import RandomSearch, control_methods
from metalearn.nas.searchers.search import Data, Score, choose, run_search
from metalearn.nas.spaces import SpaceChoice
from metalearn.nas.spaces.conv4_micro import Conv4Micro
from metalearn.nas.spaces.space import Genotype, Space, describe
from metalearn.rng import fold_in
from metalearn.scopes.search_steps import steps_of
from metalearn.storage.files import append_lines, cut_lines, read_lines, write_json
from metalearn.types import EpisodeSpec, Key, Learner, Ledger, MetaState, Method, TaskSource

CHUNK = 50  # tasks learned at once when a candidate is scored
RECORD = "search.jsonl"


class SharedNAS(MethodComponent):
    """Search for one architecture on training tasks; another method then uses it.

    A candidate's score is minus the mean query loss of `score_tasks` other training tasks, after
    `search_steps` meta-steps of the contained method and `adapt_steps` steps on each task.
    `prepare` searches and returns the contained method on the winner; only the architecture is
    passed on.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> search = ml.nas.SharedNAS(space=ml.nas.MLPReg(), candidates=4)
    >>> method = search.build(learner, source.spec, contained=ml.algorithms.MAML())
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "search"
    contains_by_default: ClassVar[str | None] = "maml"
    can_be_contained: ClassVar[bool] = False

    name: Literal["shared_nas"] = option("shared_nas", "The method.")
    space: SpaceChoice = option(Conv4Micro(), "Search space.", acts="train")
    searcher: SearcherChoice = option(RandomSearch(), "Search algorithm.", acts="train")
    candidates: int = option(
        16, "Budget, in full training runs of a candidate.", acts="train", ge=1, le=100_000
    )
    search_steps: int = option(
        200, "Meta-steps of a full training run of a candidate.", acts="train", ge=0
    )
    search_tasks: int = option(16, "Tasks per meta-step of the search.", acts="train", ge=1)
    search_examples: int = option(
        64,
        "Examples per meta-step of the search, if the contained method consumes examples.",
        acts="train",
        ge=1,
    )
    score_tasks: int = option(
        200, "Number of training tasks on which a candidate is scored.", acts="train", ge=2
    )
    adapt_steps: int = option(5, "Inner steps on each of these tasks.", acts="train", ge=0)
    standard_errors: float = option(
        0.0,
        "Choose the cheapest candidate within this many standard errors of the best score; "
        "0: the best.",
        acts="train",
        ge=0,
    )

    def build(
        self,
        learner: Learner,
        spec: EpisodeSpec,
        meta_steps: int | None = None,
        contained: MethodComponent | None = None,
    ) -> Method:
        """A method whose `prepare` searches and returns the contained one; raises ConfigError."""
        if contained is None:
            text = "is missing: shared_nas searches for another method, such as {name: maml}"
            raise ConfigError(("method.contains", text))
        if spec.queries == 0:
            text = "must be >= 1 (got 0): a shared search scores candidates by query losses"
            raise ConfigError(("task.queries", text))
        require_no_padding(self.name, spec)
        policy: Any = learner.normalisation
        space = self.space.build(spec, policy)

        def build_method(genotype: Genotype) -> Method:
            return contained.build(space.learner(genotype), spec, meta_steps=meta_steps)

        def prepare(source: TaskSource, key: Key, ledger: Ledger, folder: Path) -> Method:
            """Return the contained method on the architecture of `folder`, searched if missing."""
            choice_file = folder / CHOICE
            if not choice_file.exists():
                _check_split(source)
                folder.mkdir(parents=True, exist_ok=True)
                search = SharedSearch(self, space, contained, source, key, ledger)
                write_json(choice_file, ledger.run("search", search.run, folder / RECORD, **FREE))
            return build_method(_read_choice(space, choice_file))

        default = build_method(space.default)
        return Method(
            spec=spec,
            traits=default.traits,
            init=_not_prepared,
            learn=_not_prepared,
            step=_not_prepared if default.step is not None else None,
            prepare=prepare,
        )

    @property
    def controls(self) -> dict[str, tuple[str, MethodComponent]]:
        return control_methods(self, self.candidates)

    def found_learner(
        self, genotype: tuple[int, ...], learner: Learner, spec: EpisodeSpec
    ) -> Learner:
        """Return the winner's learner; raises ConfigError if `genotype` is not of the space."""
        policy: Any = learner.normalisation
        return Architecture(space=self.space, genotype=genotype, norm=policy).build(spec)


def _not_prepared(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        "shared_nas has no architecture yet: call method.prepare(source, key, ledger, folder) first"
    )


def _check_split(source: TaskSource) -> None:
    if source.spec.split != "train":
        text = f"a shared search uses training tasks only (got {source.spec.split!r} tasks)"
        raise ConfigError(("method.prepare", text))


class SharedSearch:
    """One search on training tasks; `ledger` receives all of its cost as phase `search`."""

    def __init__(
        self,
        options: SharedNAS,
        space: Space,
        contained: MethodComponent,
        source: TaskSource,
        key: Key,
        ledger: Ledger,
    ) -> None:
        self.options, self.space, self.contained = options, space, contained
        self.source, self.key, self.ledger = source, key, ledger
        self.searching = ledger.under("search")
        spec = source.spec
        self.examples_per_task = spec.ways * (spec.shots + spec.queries)

    def run(self, record: Path) -> dict[str, Any]:
        """Search and return the content of architecture.json.

        Trials in the record of an interrupted search are reused, with their cost."""
        options, space = self.options, self.space
        if record.exists():
            cut_lines(record, 0)  # removes a line that was not written completely
        recorded = {(tuple(row["genotype"]), row["share"]): row for row in read_lines(record)}

        def score(genotype: Genotype, share: float) -> Score:
            row = recorded.get((genotype, share))
            if row is None:
                row = self._trial(genotype, share)
                append_lines(record, [row])
            elif row["cost"]:
                self.ledger.add("search", **row["cost"])
            return Score(-math.inf if row["value"] is None else row["value"], row["error"])

        search = options.searcher.build(space)(
            fold_in(self.key, "searcher"), options.candidates, self._data()
        )
        trials = run_search(search, score, options.candidates)
        win = choose(space, trials, options.standard_errors)
        return {
            "space": space.name,
            "genotype": list(win.genotype),
            "words": describe(space, win.genotype),
            "cost": space.cost(win.genotype)._asdict(),
            "score": win.score.value,
            "trials": len(trials),
        }

    def _trial(self, genotype: Genotype, share: float) -> dict[str, Any]:
        """Score one candidate and return a row of the record."""
        totals_before = self.ledger.totals().get("search", {})
        value, error = self.score(self.space.learner(genotype), share)
        cost = _difference(totals_before, self.ledger.totals().get("search", {}))
        trial = {"genotype": list(genotype), "share": share, "cost": cost}
        return {**trial, "value": value if math.isfinite(value) else None, "error": error}

    def score(self, learner: Learner, share: float) -> Score:
        """Train a candidate on training tasks; return minus its mean query loss on other tasks."""
        steps = round(share * self.options.search_steps)
        method = self.contained.build(learner, self.source.spec, meta_steps=max(1, steps))
        losses = self._query_losses(method, self._meta_train(method, steps))
        counts = {"labels": self.options.score_tasks * self.examples_per_task, **FREE}
        self.searching.run("search", lambda: None, candidates=1, **counts)
        if not bool(losses.isfinite().all()):
            return Score(-math.inf)
        return Score(-float(losses.mean()), float(losses.std()) / math.sqrt(len(losses)))

    def _meta_train(self, method: Method, steps: int) -> MetaState:
        state = method.init(fold_in(self.key, "init"))
        if method.step is None:
            return state
        sample: Callable[..., Any] = self.source.sample
        size = self.options.search_tasks
        examples = size * self.examples_per_task
        gradients = size * self.contained.gradients_per_task
        if method.traits.consumes == "examples":
            sample, size = self.source.examples, self.options.search_examples
            examples, gradients = size, 1
        counts = {"gradient_steps": gradients, "examples": examples, "labels": examples}
        if not steps:
            return state

        # One span for all steps but the first: its ends wait for the device.
        before, data = self.searching.totals(), sample(fold_in(self.key, "train", 0), size)
        state, _ = self.searching.run("search", method.step, state, data, **counts)
        cost = _difference(before.get("search", {}), self.searching.totals().get("search", {}))
        per_step = {name: cost[name] for name in (*counts, *FREE) if cost.get(name) is not None}
        remaining = {
            name: count * (steps - 1) for name, count in per_step.items() if count is not None
        }
        step = steps_of(method, sample, fold_in(self.key, "train"), size, steps - 1)
        with self.searching.span("search", **remaining):
            for number in range(1, steps):
                state, _ = step(state, number)
        return state

    def _query_losses(self, method: Method, state: MetaState) -> Tensor:
        """Return query losses of the tasks that score a candidate: [score_tasks]."""
        losses, points = [], (self.options.adapt_steps,)
        for start in range(0, self.options.score_tasks, CHUNK):
            tasks = min(CHUNK, self.options.score_tasks - start)
            episode = self.source.sample(fold_in(self.key, "score"), tasks, start)
            learned = method.learn(
                state.meta,
                episode.support,
                episode.query.x,
                points,
                key=fold_in(episode.info["key"], "learn"),
                ledger=self.searching,
            )
            loss_fn = criterion(self.source.spec)
            losses.append(loss_fn(learned.predictions[:, -1], episode.query.y, batch_dims=1))
        return torch.cat(losses)

    def _data(self) -> Data:
        """Return data for searchers that train networks: tasks as folds, their queries held out."""
        tasks = self.options.search_tasks
        episode = self.source.sample(fold_in(self.key, "lanes"), tasks)
        folds = Folds(episode.support, episode.query, fold_in(episode.info["key"], "lane"))
        if self.options.searcher.uses_data:
            labels = tasks * self.examples_per_task
            self.searching.run("search", lambda: None, labels=labels, **FREE)
        return Data(folds, self.searching)


def _read_choice(space: Space, path: Path) -> Genotype:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        genotype = tuple(int(choice) for choice in content["genotype"])
        if content["space"] != space.name:
            raise ValueError(
                f"contains an architecture of {content['space']} instead of {space.name}"
            )
        space.learner(genotype)
    except (ValueError, KeyError, TypeError, OSError) as error:
        text = f"is not an architecture of this search space ({error}): remove it to search again"
        raise ConfigError((str(path), text)) from error
    return genotype


def _difference(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Return the differences of two totals; None if not measured; for a peak the later value."""
    return {
        name: total if total is None or name == "peak_bytes" else total - (before.get(name) or 0)
        for name, total in after.items()
    }
