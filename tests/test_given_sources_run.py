"""Runs on task sources of the user: their losses, their hash, and mixtures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from own_sources import METHODS, QUICK, Groups, Lines, NoExamples, by_split, defined, with_batches

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.executors.step import make_batch_sampler
from metalearn.rng import fold_in
from metalearn.types import Batch, EpisodeSpec

SINUSOID = {"source": "sinusoid", "shots": 5, "queries": 6}


class Gaps(Lines):
    """Two targets, of which some are missing; the network predicts their mean and deviation."""

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        episode = super().sample(key, num_tasks, start)
        both = with_batches(lambda b: b._replace(y=torch.cat([b.y, b.y], -1)))(episode)
        return with_batches(lambda b: b._replace(y=b.y.masked_fill(b.x > 0.5, torch.nan)))(both)

    def examples(self, key: Any, size: int) -> Any:
        x, y, _ = super().examples(key, size)
        return Batch(x, torch.cat([y, y], -1))


def masked(predictions: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Likelihood of a normal distribution, without the missing targets."""
    mean, log_deviation = predictions.chunk(2, -1)
    residual = (y.nan_to_num() - mean) * torch.exp(-log_deviation)
    each = log_deviation + residual.square() / 2
    return torch.where(y.isfinite(), each, torch.zeros_like(each))


@pytest.mark.parametrize("section", ["loss", "spec"])
def test_a_loss_of_ones_own_may_compare_other_targets(section: str, tmp_path: Path) -> None:
    loss: dict[str, Any] = {"loss": masked}
    sources = by_split(Gaps, outputs=4, **(loss if section == "spec" else {}))
    options = QUICK | (loss if section == "loss" else {})
    run = ml.train(METHODS["maml"], task=sources, out=tmp_path / "out", **options)
    assert run.state.step == 1
    if section == "loss":
        with pytest.raises(ConfigError, match="but spec"):
            ml.train(METHODS["maml"], task=sources, out=tmp_path / "b", **QUICK | {"loss": "huber"})


class ReadOnly(Lines):
    """A source whose spec is a property."""

    def __init__(self, split: str) -> None:
        self.split = split

    @property
    def spec(self) -> EpisodeSpec:  # type: ignore[override]
        return Lines(self.split).spec  # type: ignore[no-any-return]


def test_a_spec_that_cannot_be_changed_is_accepted_without_a_loss(tmp_path: Path) -> None:
    sources = by_split(ReadOnly)
    ml.train(METHODS["maml"], task=sources, out=tmp_path / "out", **QUICK)
    with pytest.raises(ConfigError, match="loss: cannot be set, because the spec of ReadOnly is"):
        ml.train(METHODS["maml"], task=sources, out=tmp_path / "b", loss="huber", **QUICK)


def test_the_newest_of_two_sources_with_the_same_tasks_is_used(tmp_path: Path) -> None:
    """The class was edited in a notebook, where a result of the older one is still alive."""
    older = ml.tasks.Given(by_split())
    newer = ml.train(METHODS["maml"], task=defined(), out=tmp_path / "out", **QUICK)
    assert newer.config.task.sha256 == older.sha256
    assert type(newer.config.task.build()).__name__ == "Own"
    assert type(older.build()).__name__ == "Lines"
    del newer
    again = ml.train(METHODS["maml"], task=older, out=tmp_path / "again", **QUICK)
    assert type(again.config.task.build()).__name__ == "Lines"


class Unlabelled(ml.tasks.Sinusoid):
    """A component whose source has the spec of another split, and no examples."""

    source: Literal["unlabelled"] = ml.option("unlabelled", "The task source.")  # type: ignore[assignment]

    def build(self, split: str = "train", *args: Any, **where: Any) -> Any:
        return NoExamples("train")


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("options", [{}, {"shots": [1, 5]}])
def test_sources_that_components_build_have_the_same_form(options: Any, tmp_path: Path) -> None:
    for task, place in (
        (Unlabelled(**options), "task.source"),
        (ml.tasks.Mixture([Unlabelled(**options)]), "task.sources.0.source"),
    ):
        with pytest.raises(ConfigError) as caught:
            ml.train(METHODS["maml"], task=task, out=tmp_path / "out", **QUICK)
        assert f"{place}: NoExamples has no examples" in str(caught.value)
        assert "spec.split is 'train', but this is the source of the split 'valid'" in str(
            caught.value
        )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "sources",
    [[by_split(), SINUSOID], [lambda split: Lines(split), SINUSOID], [Lines(), by_split(Groups)]],
)
def test_a_mixture_takes_sources(sources: Any, tmp_path: Path) -> None:
    """Beside sections of a file, too: the mixture keeps the sources alive."""
    task = ml.tasks.Mixture(sources)
    run = ml.train(METHODS["maml"], task=task, out=tmp_path / "out", **QUICK)
    assert run.source.sample(ml.fold_in(0), 4).info["source"].shape == (4,)


def test_a_mixture_refuses_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ml.tasks.Mixture([by_split(NoExamples), SINUSOID, {"train": Lines()}])
    places = [place for place, _ in caught.value.problems]
    assert places == ["sources.0.sources.train, valid, test", *["sources.2.sources"] * 2]
    mixture = ml.tasks.Mixture([Lines()], shots=2)
    with pytest.raises(ConfigError, match=r"task\.sources\.0: its tasks have shots 5, and the"):
        ml.train(METHODS["maml"], task=mixture, out=tmp_path / "out", **QUICK)


def test_too_few_tasks_are_refused_where_more_are_sampled_than_checked() -> None:
    """They would be fewer test tasks, or a smaller step, than the report says."""
    source = Lines()
    source.sample = lambda key, n, start=0: Lines.sample(source, key, min(n, 60), start)  # type: ignore[method-assign]
    ml.tasks.Given(source)
    learner = ml.models.MLP(sizes=(4,)).build(source.spec)
    method = ml.algorithms.MAML().build(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    with pytest.raises(ConfigError, match=r"sample\(key, 80, 0\) of the task source returned 60 i"):
        ml.evaluate.learning_curve(method, meta, source, (0, 1), 80, chunk=80)
    with pytest.raises(ConfigError, match=r"sample\(key, 70, 0\) of the task source returned 60 i"):
        make_batch_sampler(source, method, 4)(fold_in(0), 70, 0)
    pretrained = ml.transfer.FineTune().build(learner, source.spec)
    source.examples = lambda key, size: Lines.examples(source, key, 4)  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"examples\(key, 8\) of the task source returned 4 inste"
    ):
        make_batch_sampler(source, pretrained, 8)(fold_in(0), 1, 0)
