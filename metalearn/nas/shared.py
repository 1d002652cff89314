"""Architecture search once for a family of tasks: the winner is then learned as any model is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar

import torch

from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.losses import criterion
from metalearn.nas.conv4_micro import Conv4Micro
from metalearn.nas.fit import FREE, Folds
from metalearn.nas.random_search import RandomSearch
from metalearn.nas.search import Data, Score, choose, drive
from metalearn.nas.space import Genotype, Space, words
from metalearn.nas.tables import SearcherChoice, SpaceChoice, looks_at_data
from metalearn.rng import fold_in
from metalearn.types import EpisodeSpec, Key, Learner, Ledger, Method, TaskSource

Result = TypeVar("Result")
CHUNK = 50  # tasks learned at once where a candidate is scored
CHOICE, RECORD = "architecture.json", "search.jsonl"


class Contained(Protocol):
    """What is learned with each architecture: a component of another room, handed in."""

    def build(
        self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None
    ) -> Method: ...


class SharedNAS(MethodComponent):
    """Search one architecture on training tasks, then meta-train or pretrain it as the contained
    method does.

    A candidate's score is minus the mean query loss of `score_tasks` other training tasks, after
    `search_steps` meta-steps of the contained method and `adapt_steps` steps on each task.
    `prepare` searches, and returns the contained method on the winner, which knows nothing of the
    search but the architecture."""

    contains_by_default: ClassVar[str | None] = "maml"
    can_be_contained: ClassVar[bool] = False

    family: ClassVar[str] = "search"
    name: Literal["shared_nas"] = option("shared_nas", "the method")
    space: SpaceChoice = option(Conv4Micro(), "what is searched", acts="train")
    searcher: SearcherChoice = option(RandomSearch(), "who searches", acts="train")
    candidates: int = option(
        16, "budget, in full trainings of a candidate", acts="train", ge=1, le=100_000
    )
    search_steps: int = option(200, "meta-steps of a candidate's full training", acts="train", ge=0)
    search_tasks: int = option(16, "tasks in one of these meta-steps", acts="train", ge=1)
    search_examples: int = option(
        64, "or examples, where the contained method consumes them", acts="train", ge=1
    )
    score_tasks: int = option(200, "training tasks that score a candidate", acts="train", ge=2)
    adapt_steps: int = option(5, "steps on each of them", acts="train", ge=0)
    standard_errors: float = option(
        0.0, "how far from the best a cheaper candidate wins; 0: the best wins", acts="train", ge=0
    )

    def build(
        self,
        learner: Learner,
        spec: EpisodeSpec,
        meta_steps: int | None = None,
        contained: Contained | None = None,
    ) -> Method:
        """A method that has not searched yet: call its `prepare`, and use what comes back.
        `contained` is needed.
        """
        if contained is None:
            text = (
                "is missing: shared_nas finds an architecture for another method, such as "
                "{name: maml}"
            )
            raise ConfigError(("method.contains", text))
        if spec.queries == 0:
            text = (
                "is 0, but a shared search scores candidates by queries of training tasks: "
                "give at least 1 a class"
            )
            raise ConfigError(("task.queries", text))
        policy: Any = learner.normalisation
        space = self.space.build(spec, policy)

        def method_of(genotype: Genotype) -> Method:
            return contained.build(space.learner(genotype), spec, meta_steps=meta_steps)

        def prepare(source: TaskSource, key: Key, ledger: Ledger, folder: Path) -> Method:
            """The contained method on the architecture found in `folder`, or searched now and
            written there.
            """
            found = folder / CHOICE
            if not found.exists():
                _refuse_other_splits(source)
                folder.mkdir(parents=True, exist_ok=True)
                record = folder / RECORD
                choice = ledger.run(
                    "search", _search, self, space, contained, source, key, ledger, record, **FREE
                )
                _write(found, choice)
            return method_of(_chosen(space, found))

        traits = method_of(space.default).traits
        has_step = method_of(space.default).step is not None
        return Method(
            spec=spec,
            traits=traits,
            init=_not_yet,
            learn=_not_yet,
            step=_not_yet if has_step else None,
            prepare=prepare,
        )


def _not_yet(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        "shared_nas has no architecture yet: call method.prepare(source, key, ledger, folder) first"
    )


def _refuse_other_splits(source: TaskSource) -> None:
    if source.spec.split != "train":
        text = (
            f"{source.spec.split!r} tasks were handed to a search: it may look at training "
            f"tasks alone"
        )
        raise ConfigError(("method.prepare", text))


def _search(
    options: SharedNAS,
    space: Space,
    contained: Contained,
    source: TaskSource,
    key: Key,
    ledger: Ledger,
    record: Path,
) -> dict[str, Any]:
    """Run the searcher; trials in the record of an interrupted search are told again, not trained
    again.
    """
    book = ledger.under("search")
    known = {(tuple(row["genotype"]), row["share"]): row for row in _rows(record)}

    def score(genotype: Genotype, share: float) -> Score:
        row = known.get((genotype, share))
        if row is None:
            before = ledger.totals().get("search", {})
            value = score_of(options, space.learner(genotype), contained, source, key, book, share)
            cost = _since(before, ledger.totals().get("search", {}))
            row = {"genotype": list(genotype), "share": share, "cost": cost}
            row |= {
                "value": value.value if math.isfinite(value.value) else None,
                "error": value.error,
            }
            with record.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        elif row["cost"]:
            ledger.add("search", **row["cost"])
        return Score(-math.inf if row["value"] is None else row["value"], row["error"])

    searcher = options.searcher.build(space)
    data = _data(options, source, key, book)
    if looks_at_data(options.searcher):
        spec = source.spec
        seen = options.search_tasks * spec.ways * (spec.shots + spec.queries)
        book.run("search", lambda: None, labels=seen, **FREE)
    trials = drive(
        searcher(fold_in(key, "searcher"), options.candidates, data), score, options.candidates
    )
    win = choose(space, trials, options.standard_errors)
    return {
        "space": space.name,
        "genotype": list(win.genotype),
        "words": words(space, win.genotype),
        "cost": space.cost(win.genotype)._asdict(),
        "score": win.score.value if math.isfinite(win.score.value) else None,
        "trials": len(trials),
    }


def score_of(
    options: SharedNAS,
    learner: Learner,
    contained: Contained,
    source: TaskSource,
    key: Key,
    book: Ledger,
    share: float,
) -> Score:
    """Train one candidate on training tasks, then learn other training tasks and look at their
    query loss.
    """
    spec, steps = source.spec, round(share * options.search_steps)
    method = contained.build(learner, spec, meta_steps=max(1, steps))
    gradients = int(
        getattr(contained, "gradients_per_task", getattr(contained, "inner_steps", 0) + 1)
    )
    state, per_task = method.init(fold_in(key, "init")), spec.ways * (spec.shots + spec.queries)
    if method.step is not None:
        examples = method.traits.consumes == "examples"
        units, each = (options.search_examples, 1) if examples else (options.search_tasks, per_task)
        counts = {"gradient_steps": 1 if examples else units * gradients, "examples": units * each}
        for number in range(steps):
            at = fold_in(key, "train", number)
            data = source.examples(at, units) if examples else source.sample(at, units)
            state, _ = book.run("search", method.step, state, data, **counts, labels=units * each)
    losses = []
    at = fold_in(key, "score")
    for start in range(0, options.score_tasks, CHUNK):
        tasks = min(CHUNK, options.score_tasks - start)
        episode = source.sample(at, tasks, start)
        keys = fold_in(episode.info["key"], "learn")
        said = method.learn(
            state.meta,
            episode.support,
            episode.query.x,
            (options.adapt_steps,),
            key=keys,
            ledger=book,
        ).predictions[:, -1]
        losses.append(criterion(spec)(said, episode.query.y, lead=1))
    each_task = torch.cat(losses)
    book.run("search", lambda: None, candidates=1, labels=options.score_tasks * per_task, **FREE)
    if not bool(each_task.isfinite().all()):
        return Score(-math.inf)
    return Score(-float(each_task.mean()), float(each_task.std()) / math.sqrt(len(each_task)))


def _data(options: SharedNAS, source: TaskSource, key: Key, book: Ledger) -> Data:
    """For searchers that train networks themselves: training tasks as lanes, their queries held
    out.
    """
    episode = source.sample(fold_in(key, "lanes"), options.search_tasks)
    folds = Folds(episode.support, episode.query, fold_in(episode.info["key"], "lane"))
    return Data(folds, book)


def _chosen(space: Space, path: Path) -> Genotype:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        genotype = tuple(int(choice) for choice in found["genotype"])
        if found["space"] != space.name:
            raise ValueError(f"holds an architecture of {found['space']}, not of {space.name}")
        space.learner(genotype)
    except (ValueError, KeyError, TypeError, OSError) as error:
        text = f"is no architecture of this space ({error}): remove it to search again"
        raise ConfigError((str(path), text)) from error
    return genotype


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record; a line that a kill tore is left out, and cut off."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                rows.append(json.loads(line))
        whole = "".join(json.dumps(row) + "\n" for row in rows)
        if whole != path.read_text(encoding="utf-8"):
            _put(path, whole)
    return rows


def _write(path: Path, data: dict[str, Any]) -> None:
    _put(path, json.dumps(data, indent=1) + "\n")


def _put(path: Path, text: str) -> None:
    """The whole text or nothing."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _since(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, float | None]:
    """What was added between two totals; null where it was not measured, and of a peak the later
    one.
    """
    return {
        name: total if total is None or name == "peak_bytes" else total - (before.get(name) or 0)
        for name, total in after.items()
    }
