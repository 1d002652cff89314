"""Search for a task and for a family: their data, their results, their cost."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import close
from clusters import Clusters
from nas_tasks import Images, image_spec

from metalearn.algorithms import MAML
from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.evaluate.ledger import CostLedger
from metalearn.inner.adapt import adapt
from metalearn.inner.rules import Adam, sgd
from metalearn.losses import cross_entropy
from metalearn.models import MLP
from metalearn.nas import (
    DARTS,
    NAS,
    Conv4Micro,
    Evolution,
    Halving,
    MLPReg,
    OneShot,
    PerTaskNAS,
    RandomSearch,
    SharedNAS,
)
from metalearn.nas.searchers.search import Ask, Data
from metalearn.rng import fold_in
from metalearn.tree import leaves, take
from metalearn.types import Batch, Episode, Method


def image_method(
    component: Any, spec: Any = None, norm: str = "query_batch", **options: Any
) -> Method:
    """A method of architecture search over tiny conv4-micro cells."""
    spec = image_spec() if spec is None else spec
    learner = MLP(sizes=(4,), norm=norm).build(spec)  # its policy is all that is read of it
    method: Method = component(space=Conv4Micro(filters=2), **options).build(learner, spec)
    return method


def learned_by(method: Method, episode: Episode, steps: Any = (0, 1, 3), **more: Any) -> Any:
    return method.learn(
        method.init(fold_in(0)).meta, episode.support, episode.query.x, steps, **more
    )


def test_a_searched_network_learns_its_task() -> None:
    """From chance to well above it on tasks of noisy prototypes."""
    source = Images(image_spec(4))
    method = image_method(PerTaskNAS, source.spec, candidates=3, search_steps=6, inner_lr=0.5)
    curve = learning_curve(method, {}, source, (0, 10), episodes=8, seed=0)
    assert curve.mean[1] > curve.mean[0] + 0.15 and curve.mean[1] > 0.55


# per task


@pytest.mark.parametrize("batching", ["bucket", "masks"])
@pytest.mark.parametrize("shots", [1, 2])
def test_the_winner_is_trained_on_the_whole_support_set(shots: int, batching: str) -> None:
    """Predictions are those of the recorded architecture, trained alone from the task's key."""
    source = Images(image_spec(shots))
    method = image_method(PerTaskNAS, source.spec, candidates=4, search_steps=2, batching=batching)
    episode, keys = source.sample(fold_in(1), 3), fold_in(7, torch.arange(3))
    learned = learned_by(method, episode, key=keys)
    space = Conv4Micro(filters=2).build(source.spec, "query_batch")
    for task in range(3):
        genotype = tuple(learned.notes["genotype"][task].tolist())
        learner = space.learner(genotype)
        support, x = take(episode.support, task), episode.query.x[task]

        def loss(params: Any, batch: Batch, step: int, learner: Any = learner) -> torch.Tensor:
            return cross_entropy(learner.apply(params, batch.x), batch.y)

        start = learner.init(fold_in(keys[task], "retrain"))
        path = adapt(loss, start, sgd(0.1), support, 3, keep=(0, 1, 3))
        wanted = torch.stack(
            [learner.apply(params, x, context=support.x) for params in path.points]
        )
        torch.testing.assert_close(learned.predictions[task], wanted, rtol=1e-8, atol=1e-10)
        assert learned.notes["architecture_flops"][task] == space.cost(genotype).flops
    assert learned.notes["candidates"].tolist() == [4.0] * 3
    assert learned.notes["trial_score"].shape == (3, 4)
    assert learned.notes["trial_genotype"].shape == (3, 4, 3)
    assert torch.equal(learned.notes["trial_score"].amax(1), learned.notes["best_score"])


def test_batching_moves_no_score() -> None:
    source = Images(image_spec())
    episode = source.sample(fold_in(1), 2)
    bucket, masks = (
        learned_by(
            image_method(PerTaskNAS, batching=batching, candidates=5, search_steps=3), episode
        )
        for batching in ("bucket", "masks")
    )
    close(bucket.notes, masks.notes, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(bucket.predictions, masks.predictions, rtol=1e-8, atol=1e-10)


def test_a_standard_error_makes_winners_cheaper_and_never_better_scored() -> None:
    episode = Images(image_spec(4)).sample(fold_in(2), 4)
    options = {"candidates": 8, "search_steps": 4, "inner_lr": 0.3}
    strict, lenient = (
        learned_by(
            image_method(PerTaskNAS, image_spec(4), standard_errors=errors, **options),
            episode,
            (0,),
        ).notes
        for errors in (0.0, 2.0)
    )
    assert torch.equal(strict["score"], strict["best_score"])
    assert torch.equal(strict["best_score"], lenient["best_score"])
    assert (lenient["score"] <= strict["score"]).all()
    assert (lenient["architecture_flops"] <= strict["architecture_flops"]).all()
    assert (lenient["architecture_flops"] < strict["architecture_flops"]).any()


@pytest.mark.parametrize(
    "searcher", [Evolution(population=2), Halving(), DARTS(steps=2), OneShot(steps=2, pool=3)]
)
def test_every_kind_of_searcher_serves_a_task_alike_alone_and_in_a_batch(searcher: Any) -> None:
    source = Images(image_spec())
    method = image_method(PerTaskNAS, searcher=searcher, candidates=5, search_steps=2)
    episode, keys = source.sample(fold_in(3), 3), fold_in(9, torch.arange(3))
    together = learned_by(method, episode, key=keys)
    alone = learned_by(method, take(episode, slice(1, 2)), key=keys[1:2])
    assert torch.equal(together.notes["genotype"][1:2], alone.notes["genotype"])
    torch.testing.assert_close(together.predictions[1:2], alone.predictions, rtol=1e-8, atol=1e-10)


class Always:
    """A planted searcher that asks for one architecture."""

    def build(self, space: Any) -> Any:
        def search(key: Any, budget: int, data: Data) -> Any:
            yield Ask((space.default,))

        return search


def test_the_ledger_of_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 tasks of 4 folds, 2 steps: steps, examples, candidates, labels, and FLOPs by hand."""
    monkeypatch.setattr(RandomSearch, "build", lambda self, space: Always().build(space))
    source = Images(image_spec(4))
    found = {}
    for batching in ("bucket", "masks"):
        ledger = CostLedger()
        method = image_method(
            PerTaskNAS, source.spec, candidates=3, search_steps=2, batching=batching
        )
        learned_by(method, source.sample(fold_in(1), 2), (0, 4), ledger=ledger)
        ledger.require(method.traits.phases)
        found[batching] = {
            phase: row for phase, row in ledger.cost().items() if phase in ledger.totals()
        }
    assert set(found["bucket"]) == set(method.traits.phases) == {"search", "retrain", "predict"}
    search, retrain, predict = (
        found["bucket"][phase] for phase in ("search", "retrain", "predict")
    )
    lanes = 2 * 4
    assert search["gradient_steps"] == lanes * 2 and search["examples"] == lanes * 2 * 9
    assert search["candidates"] == 2 and search["tasks"] == 2 and search["labels"] == 24
    assert (
        retrain["gradient_steps"] == 8 and retrain["examples"] == 8 * 12 and retrain["labels"] == 0
    )
    assert predict["tasks"] == 2
    # Conv4 of 2 filters on 16 x 16 by strides: the first layer needs no gradient of its input.
    first, others, head = 2 * 64 * 9 * 2, 2 * (16 + 4 + 1) * 9 * 4, 2 * 2 * 3
    step, forward = 2 * first + 3 * (others + head), first + others + head
    assert search["flops"] == lanes * (2 * 9 * step + 3 * forward) == search["flops_architecture"]
    assert retrain["flops"] == 2 * 4 * 12 * step
    assert predict["flops"] == 2 * 2 * 6 * forward
    masked = found["masks"]["search"]
    assert masked["flops"] > 2 * search["flops"] and masked["flops_architecture"] is None
    assert masked["gradient_steps"] == search["gradient_steps"]


def test_support_sets_of_another_size_are_refused() -> None:
    method = image_method(PerTaskNAS, image_spec(2))
    with pytest.raises(ConfigError, match="9 examples"):
        learned_by(method, Images(image_spec(3)).sample(fold_in(0), 1))


def test_a_candidate_that_diverges_loses() -> None:
    """Step sizes beyond reason: predictions still come, and the scores say what happened."""
    method = image_method(PerTaskNAS, norm="none", inner_lr=1e150, candidates=3, search_steps=3)
    learned = learned_by(method, Images(image_spec()).sample(fold_in(1), 2), (0,))
    assert learned.predictions.isfinite().all() and (learned.notes["score"] == -torch.inf).any()


# what a search cannot see


class Peeping:
    """A planted searcher that keeps whatever it is given."""

    def __init__(self) -> None:
        self.seen: list[Data] = []

    def build(self, space: Any) -> Any:
        def search(key: Any, budget: int, data: Data) -> Any:
            self.seen.append(data)
            yield Ask((space.default,))

        return search


def test_queries_are_out_of_a_searchers_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of a searcher shares memory or values with queries; asking for them is an error."""
    searcher = Peeping()
    monkeypatch.setattr(RandomSearch, "build", lambda self, space: searcher.build(space))
    episode = Images(image_spec()).sample(fold_in(1), 2)
    learned_by(image_method(PerTaskNAS), episode)
    assert len(searcher.seen) == 2
    queries = {row.tobytes() for row in episode.query.x.flatten(0, 1).numpy()}
    supports = {row.tobytes() for row in episode.support.x.flatten(0, 1).numpy()}
    for data in searcher.seen:
        images = [leaf for leaf in leaves(data.folds) if leaf.is_floating_point()]
        given = {row.tobytes() for image in images for row in image.flatten(0, 1).numpy()}
        assert given <= supports and not given & queries
        assert set(data._fields) == {"folds", "ledger"}
        with pytest.raises(AttributeError):
            _ = data.query  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            Data(*data, episode.query)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["per_task_nas", "meta_nas"])
def test_query_labels_have_no_way_in(name: str) -> None:
    method = image_method(NAS[name])
    expected = ["meta", "support", "query_x", "steps", "key", "ledger"]
    assert list(inspect.signature(method.learn).parameters) == expected
    episode = Images(image_spec()).sample(fold_in(1), 2)
    meta = method.init(fold_in(0)).meta
    with pytest.raises(TypeError):
        method.learn(meta, episode, (0, 1))  # a whole episode, labels and all
    with pytest.raises(TypeError):
        method.learn(meta, episode.support, episode.query.x, (0, 1), labels=episode.query.y)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_shared_search_is_refused_other_tasks_than_training_tasks(
    split: str, tmp_path: Path
) -> None:
    method, _ = shared()
    assert method.prepare is not None
    with pytest.raises(ConfigError, match="training tasks only"):
        method.prepare(Clusters(split, 12), fold_in(0), CostLedger(), tmp_path)
    assert not list(tmp_path.iterdir())


# for a family of tasks


def shared(**options: Any) -> tuple[Method, MAML]:
    settings = {
        "space": MLPReg(),
        "candidates": 3,
        "search_steps": 2,
        "search_tasks": 3,
        "score_tasks": 4,
        **options,
    }
    contained = MAML(inner_steps=1, inner_lr=0.1, outer=Adam(lr=0.02))
    spec = Clusters("train", 12).spec
    learner = MLP(sizes=(4,)).build(spec)
    return SharedNAS(**settings).build(learner, spec, meta_steps=5, contained=contained), contained


def test_shared_search_gives_back_the_contained_method_on_its_winner(tmp_path: Path) -> None:
    method, contained = shared()
    assert method.prepare is not None
    with pytest.raises(RuntimeError, match="prepare"):
        method.init(fold_in(0))
    source, ledger = Clusters("train", 12), CostLedger()
    found = method.prepare(source, fold_in(4), ledger, tmp_path / "deep" / "search")
    choice = json.loads((tmp_path / "deep" / "search" / "architecture.json").read_text())
    space = MLPReg().build(source.spec, "none")
    wanted = contained.build(space.learner(tuple(choice["genotype"])), source.spec)
    state = found.init(fold_in(1))
    close(state.meta, wanted.init(fold_in(1)).meta)
    data = source.sample(fold_in(2), 3)
    close(found.step(state, data), wanted.step(wanted.init(fold_in(1)), data))  # type: ignore[misc]
    assert set(ledger.totals()) == {"search"}
    spent = ledger.totals()["search"]
    assert spent["candidates"] == 3 == choice["trials"]
    episode = source.spec.ways * (source.spec.shots + source.spec.queries)
    assert spent["labels"] == 3 * episode * (2 * 3 + 4)
    assert spent["gradient_steps"] == 3 * (2 * 3 * 2 + 4 * 5)


class Forbidden(Clusters):
    """A source that must not be asked."""

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Episode:
        raise AssertionError("searched again")


def test_a_search_that_is_written_is_not_made_again(tmp_path: Path) -> None:
    method, _ = shared()
    assert method.prepare is not None
    first = method.prepare(Clusters("train", 12), fold_in(4), CostLedger(), tmp_path)
    again = method.prepare(Forbidden("train", 12), fold_in(4), CostLedger(), tmp_path)
    close(first.init(fold_in(1)).meta, again.init(fold_in(1)).meta)
    (tmp_path / "architecture.json").write_text('{"space": "mlp-reg", "genotype": [9, 9]}')
    with pytest.raises(ConfigError, match="remove it"):
        method.prepare(Forbidden("train", 12), fold_in(4), CostLedger(), tmp_path)


def test_an_interrupted_search_goes_on_and_pays_for_what_it_had(tmp_path: Path) -> None:
    method, _ = shared()
    assert method.prepare is not None
    whole, part = tmp_path / "whole", tmp_path / "part"
    paid = CostLedger()
    method.prepare(Clusters("train", 12), fold_in(4), paid, whole)
    rows = (whole / "search.jsonl").read_text().splitlines(keepends=True)
    part.mkdir()
    (part / "search.jsonl").write_text("".join(rows[:2]) + rows[2][:20])  # the third line is torn
    ledger = CostLedger()
    method.prepare(Clusters("train", 12), fold_in(4), ledger, part)
    assert (part / "architecture.json").read_text() == (whole / "architecture.json").read_text()
    fresh = [json.loads(line) for line in (part / "search.jsonl").read_text().splitlines()]
    assert len(fresh) == 3 and fresh[:2] == [json.loads(line) for line in rows[:2]]
    mine, other = ledger.totals()["search"], paid.totals()["search"]
    measured = {"seconds", "peak_bytes", "energy_joules"}
    expected = {k: v for k, v in other.items() if k not in measured}
    assert {k: v for k, v in mine.items() if k not in measured} == expected
    assert mine["seconds"] > sum(json.loads(row)["cost"]["seconds"] for row in rows[:2])


def test_shared_search_needs_something_to_contain() -> None:
    spec = Clusters("train", 12).spec
    with pytest.raises(ConfigError, match=r"method\.contains"):
        SharedNAS(space=MLPReg()).build(MLP(sizes=(4,)).build(spec), spec)


def test_darts_searches_a_family_with_its_tasks_as_lanes(tmp_path: Path) -> None:
    method, _ = shared(searcher=DARTS(steps=2))
    assert method.prepare is not None
    ledger = CostLedger()
    method.prepare(Clusters("train", 12), fold_in(4), ledger, tmp_path)
    assert json.loads((tmp_path / "architecture.json").read_text())["trials"] == 1
