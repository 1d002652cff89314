"""Learning curves against answers that are known beforehand; the ensemble; the ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import case
from clusters import Clusters
from nas_tasks import Images, image_spec
from torch import Tensor

from metalearn.config.registry import METHODS
from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve, tasks_at_once
from metalearn.rng import fold_in, normal
from metalearn.tasks import Sinusoid
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Key,
    Learned,
    MetaState,
    Method,
    NullLedger,
    Traits,
)

F64 = torch.float64


def answering(spec: EpisodeSpec, answer: Any) -> Method:
    """A method whose predictions [T, P, M, C] are `answer(support, query_x, points, keys)`."""

    def learn(
        meta: Any, support: Batch, query_x: Tensor, steps: Any, key: Any = None, ledger: Any = None
    ) -> Learned:
        return Learned(answer(support, query_x, tuple(steps), key), {})

    zero = torch.zeros((), dtype=spec.dtype)
    return Method(
        spec, Traits(consumes="nothing"), lambda key: MetaState({}, {}, None, zero), learn
    )


def shape_of(query_x: Tensor, points: tuple[int, ...], outputs: int) -> tuple[int, ...]:
    return (query_x.shape[0], len(points), query_x.shape[1], outputs)


def constant(value: float, outputs: int) -> Any:
    return lambda support, x, points, keys: torch.full(
        shape_of(x, points, outputs), value, dtype=x.dtype
    )


WAVES = Sinusoid(shots=3, queries=8, amplitude=(1.0, 5.0)).build("test", dtype=F64)


# closed forms


def test_large_networks_are_tested_few_tasks_at_once() -> None:
    assert tasks_at_once(50, {"w": torch.zeros(112_000)}) == 50
    assert tasks_at_once(50, {"w": torch.zeros(1).expand(11_000_000)}) == 3
    assert tasks_at_once(2, {"w": torch.zeros(1).expand(11_000_000)}) == 2
    assert tasks_at_once(50, {"w": torch.zeros(1).expand(2**30)}) == 1
    assert tasks_at_once(50, {}) == 50


def test_scores_of_a_regression_are_squared_errors() -> None:
    """The answer 0.5 everywhere: every score is mean (y - 0.5)^2, and mean, interval and median are
    numpy's."""
    curve = learning_curve(
        answering(WAVES.spec, constant(0.5, 1)), {}, WAVES, (0, 1, 5), episodes=70, seed=4
    )
    y = WAVES.sample(fold_in(4, "episodes"), 70).query.y
    each = (y - 0.5).square().mean((1, 2))
    assert curve.metric == "loss" and curve.steps == (0, 1, 5) and curve.scores.shape == (70, 3)
    for point in range(3):
        torch.testing.assert_close(curve.scores[:, point], each)
        torch.testing.assert_close(curve.loss[:, point], each)
    array = each.numpy()
    torch.testing.assert_close(curve.mean[1], torch.tensor(array.mean()))
    torch.testing.assert_close(
        curve.ci95[1], torch.tensor(1.99494541 * array.std(ddof=1) / 70**0.5)
    )
    torch.testing.assert_close(curve.median[1], torch.tensor(sorted(array)[34:36]).mean())


def test_scores_of_a_classification_are_accuracies() -> None:
    """Confident answers, right for the first k queries of 12 at point k: accuracy k / 12, loss 10
    (12 - k) / 12."""
    source = Clusters("test", 12)

    def answer(support: Batch, x: Tensor, points: tuple[int, ...], keys: Tensor) -> Tensor:
        truth = torch.arange(3).repeat(4)  # the labels of these tasks stand in this order
        named = torch.stack(
            [torch.where(torch.arange(12) < point, truth, (truth + 1) % 3) for point in points]
        )
        return 10.0 * torch.nn.functional.one_hot(named, 3).double().expand(x.shape[0], -1, -1, -1)

    points = (0, 3, 12)
    curve = learning_curve(answering(source.spec, answer), {}, source, points, episodes=7)
    nothing = float(torch.log(torch.exp(torch.tensor(10.0, dtype=F64)) + 2) - 10)
    for place, point in enumerate(points):
        assert curve.scores[:, place].tolist() == pytest.approx([point / 12] * 7)
        assert curve.loss[:, place].tolist() == pytest.approx(
            [(12 - point) / 12 * 10 + nothing] * 7
        )
    assert curve.metric == "accuracy" and not curve.diverged.any()


def test_steps_as_a_number_are_all_points_to_it() -> None:
    curve = learning_curve(answering(WAVES.spec, constant(0.0, 1)), {}, WAVES, 3, episodes=2)
    assert curve.steps == (0, 1, 2, 3) and curve.scores.shape == (2, 4)


@pytest.mark.parametrize("name", METHODS)
def test_chunks_change_nothing(name: str) -> None:
    """Nor does the number of episodes: the first ones stay what they were; another seed draws
    others."""
    given, tests = case(name, METHODS[name]), Clusters("test", 24)
    meta = given.state().meta
    whole, pieces, few = (
        learning_curve(given.method, meta, tests, (0, 2), count, seed=3, chunk=size)
        for count, size in ((11, 50), (11, 4), (5, 1))
    )
    torch.testing.assert_close(whole.loss, pieces.loss, rtol=1e-9, atol=1e-12)
    assert torch.equal(whole.scores, pieces.scores)
    torch.testing.assert_close(whole.loss[:5], few.loss, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(
        learning_curve(given.method, meta, tests, (0, 2), 11, seed=4).loss, whole.loss
    )


#
# nothing leaks, 1 / N


class Relabelled:
    """The same tasks with other labels of the queries."""

    def __init__(self, source: Clusters) -> None:
        self.spec, self._source = source.spec, source

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        episode = self._source.sample(key, num_tasks, start)
        # All of one class: scores change even where every answer is the same.
        return episode._replace(query=episode.query._replace(y=torch.zeros_like(episode.query.y)))


@pytest.mark.parametrize("name", METHODS)
def test_query_labels_change_scores_and_no_prediction(name: str) -> None:
    given, tests = case(name, METHODS[name]), Clusters("test", 24)
    meta, heard = given.state().meta, []

    def listening(*args: Any, **kwargs: Any) -> Learned:
        heard.append(given.method.learn(*args, **kwargs))
        return heard[-1]

    method = given.method._replace(learn=listening)
    one, two = (
        learning_curve(method, meta, source, (0, 3), 30) for source in (tests, Relabelled(tests))
    )
    assert torch.equal(heard[0].predictions, heard[1].predictions)
    assert not torch.equal(one.scores, two.scores) and not torch.equal(one.loss, two.loss)


def tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor inside, through containers and objects."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (tuple, list, dict)) or hasattr(thing, "__dict__"):
        if isinstance(thing, dict):
            parts = thing.values()
        else:
            parts = thing if isinstance(thing, (tuple, list)) else ()
        for part in (*parts, *getattr(thing, "__dict__", {}).values()):
            yield from tensors(part)


def finds(thing: Any, labels: Tensor) -> bool:
    """Whether the memory under any tensor inside holds these labels, the parts that the tensor does
    not show too."""
    wanted = labels.contiguous().numpy().tobytes()
    return any(wanted in bytes(found.untyped_storage()) for found in tensors(thing))


@pytest.mark.parametrize(
    "source", [WAVES, Images(image_spec(2, side=8, queries=6))], ids=["waves", "images"]
)
def test_a_planted_cheat_finds_no_query_labels(source: Any) -> None:
    """It turns over all that it is handed; in a whole episode it would have found them."""
    episode, found = source.sample(fold_in(1, "episodes"), 5), []

    def cheat(*args: Any, **kwargs: Any) -> Learned:
        found.append(finds((args, kwargs), episode.query.y[0]))
        return Learned(torch.zeros(shape_of(args[2], args[3], source.spec.outputs), dtype=F64), {})

    method = answering(source.spec, constant(0.0, source.spec.outputs))._replace(learn=cheat)
    learning_curve(method, {}, source, (0, 1), 5, seed=1, ledger=NullLedger())
    assert found == [False] and finds(episode, episode.query.y[0])


def test_a_method_that_asks_for_query_labels_cannot_be_asked() -> None:
    """Neither as one more argument nor as a part of what stands in the place of the inputs."""
    honest = answering(WAVES.spec, constant(0.0, 1))

    def by_name(
        meta: Any, support: Any, query_x: Any, steps: Any, query_y: Any, **rest: Any
    ) -> Learned:
        return Learned(query_y.unsqueeze(1), {})

    def by_type(meta: Any, support: Any, query: Any, steps: Any, **rest: Any) -> Learned:
        return Learned(query.y.unsqueeze(1), {})

    for cheat, error in ((by_name, TypeError), (by_type, AttributeError)):
        with pytest.raises(error, match="y"):
            learning_curve(honest._replace(learn=cheat), {}, WAVES, (0,), 2)
    with pytest.raises((TypeError, ValueError), match="labels"):
        honest._replace(labels=WAVES.sample(fold_in(1), 2).query.y)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, part in METHODS.items()
        if not case(name, part).method.traits.support_at_step_0
    ],
)
def test_step_0_knows_nothing(name: str) -> None:
    """Before the support set is used accuracy is 1/N within 4 standard errors, with random labels
    as in real tasks."""

    class Shuffled(Clusters):
        def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
            episode = super().sample(key, num_tasks, start)
            turn = (
                (normal(fold_in(episode.info["key"], "turn"), (), F64).abs() * 1e6)
                .long()
                .unsqueeze(-1)
            )
            return episode._replace(
                support=Batch(episode.support.x, (episode.support.y + turn) % 3),
                query=Batch(episode.query.x, (episode.query.y + turn) % 3),
            )

    given = case(name, METHODS[name])
    count = 200 if given.method.traits.host_side else 600  # a task may be a whole search
    curve = learning_curve(given.method, given.state().meta, Shuffled("test", 24), (0, 3), count)
    # A constant answer is right for a third of each task, without any spread: 1/3 up to rounding.
    assert abs(curve.mean[0] - 1 / 3) < 4 * curve.ci95[0] / 1.96 + 1e-12
    # An optimizer that was never trained moves nothing, an untrained context next to nothing.
    if name not in ("learn_optimizer", "cavia"):
        assert curve.mean[1] > 1 / 3 + 4 * curve.ci95[1] / 1.96


# what diverges


def test_what_is_not_finite_is_counted_and_never_dropped() -> None:
    """A NaN or an infinity in one of twelve predictions: that task has diverged at that point and
    scores as wrong."""
    source = Clusters("test", 12)

    def answer(support: Batch, x: Tensor, points: tuple[int, ...], keys: Tensor) -> Tensor:
        truth = torch.nn.functional.one_hot(torch.arange(3).repeat(4), 3).double()
        said = truth.repeat(x.shape[0], len(points), 1, 1)
        said[1, 1, 5, 2], said[3, 0, 0, 0] = float("nan"), float("inf")
        return said

    curve = learning_curve(answering(source.spec, answer), {}, source, (0, 1), episodes=6)
    bad = torch.zeros(6, 2, dtype=torch.bool)
    bad[1, 1] = bad[3, 0] = True
    assert torch.equal(curve.diverged, bad) and curve.scores.shape == (6, 2)
    assert torch.equal(curve.scores, (~bad).double())
    assert curve.mean.tolist() == pytest.approx([5 / 6, 5 / 6])
    assert curve.diverged_share.tolist() == pytest.approx([1 / 6, 1 / 6])


def test_a_regression_that_explodes_is_counted() -> None:
    """Above ten times the mean loss of step 0, or not finite; the mean holds them, `converged` does
    not."""
    y = WAVES.sample(fold_in(1, "episodes"), 6).query.y

    def answer(support: Batch, x: Tensor, points: tuple[int, ...], keys: Tensor) -> Tensor:
        said = y.unsqueeze(1).repeat(1, 2, 1, 1) + 1.0  # loss 1 everywhere
        said[0, 1] += 1e3
        said[2, 1, 0] = float("nan")
        said[4, 1] += 2.1  # loss 9.61: not above ten times
        return said

    curve = learning_curve(answering(WAVES.spec, answer), {}, WAVES, (0, 1), episodes=6)
    assert curve.diverged[:, 1].tolist() == [True, False, True, False, False, False]
    assert not curve.diverged[:, 0].any() and not curve.mean[1].isfinite()
    mean, ci95 = curve.converged(curve.loss)
    kept = torch.tensor([1, 1, 9.61, 1], dtype=F64)
    torch.testing.assert_close(mean, torch.stack([torch.tensor(1.0, dtype=F64), kept.mean()]))
    torch.testing.assert_close(ci95[1], 3.18244631 * kept.std() / 2)


# refusals


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"ways": 4, "outputs": 4}, "task.ways"),
        ({"x_shape": (7,)}, "task.x_shape"),
        ({"outputs": 2}, "task.outputs"),
        ({"kind": "regression"}, "task.kind"),
    ],
)
def test_a_method_built_for_other_tasks_is_refused(change: dict[str, Any], place: str) -> None:
    source = Clusters("test", 12)
    other = dataclasses.replace(source.spec, **change)
    with pytest.raises(ConfigError, match="build it with the spec") as caught:
        learning_curve(answering(other, constant(0.0, 3)), {}, source)
    assert place in [problem[0] for problem in caught.value.problems]
    assert len(caught.value.problems) == len(change)  # every difference at once


def test_other_shots_queries_and_split_are_welcome() -> None:
    source = Clusters("test", 12)
    other = dataclasses.replace(source.spec, shots=9, queries=1, split="train", num_classes=99)
    assert learning_curve(
        answering(other, constant(0.0, 3)), {}, source, episodes=3
    ).scores.shape == (3, 4)


def test_no_episodes_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be >= 1"):
        learning_curve(answering(WAVES.spec, constant(0.0, 1)), {}, WAVES, episodes=0)
