"""The image engine: what every episode promises, whatever the data set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    KEY,
    SIDE,
    chi_square_sigmas,
    equal,
    identity,
    numbered,
    part,
    source_of,
    upright,
)
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.tasks import Glyphs, images, native
from metalearn.tasks.images import image_source


@pytest.mark.parametrize("rotate", [False, True])
def test_an_episode_is_the_same_in_a_batch_alone_and_in_chunks(rotate: bool) -> None:
    source = source_of(rotate_per_task=rotate)
    whole = source.sample(KEY, 7)
    assert equal(whole, source.sample(KEY, 7))
    assert equal(part(whole, 3, 7), source.sample(KEY, 4, start=3))
    assert equal(part(whole, 5, 6), source.sample(KEY, 1, start=5))
    assert not torch.equal(whole.support.x, source.sample(rng.fold_in(8, "images"), 7).support.x)
    assert len({tuple(ids.tolist()) for ids in whole.info["class_ids"]}) > 1


def test_block_borders_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of()
    whole = source.sample(KEY, 6)
    monkeypatch.setattr(images, "_BLOCK_BYTES", 7 * SIDE * SIDE)
    assert equal(whole, source._sample(KEY, 6, 0))


@pytest.mark.skipif(native.kernel() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "classes,examples,ways,shots", [(200, 40, 5, 1), (200, 40, 33, 5), (20, 9, 20, 1), (7, 5, 2, 3)]
)
def test_episodes_in_machine_code_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    dtype: torch.dtype,
    classes: int,
    examples: int,
    ways: int,
    shots: int,
) -> None:
    monkeypatch.setattr(native, "SINGLE_THREAD", 0)
    pool, before = numbered(classes, examples) % 251, torch.get_num_threads()
    for rotate, counts in (
        (False, None),
        (True, None),
        (True, [examples - row % 2 for row in range(classes)]),
    ):
        if counts is None:
            rows = pool
        else:
            rows = torch.cat([pool[row, :count] for row, count in enumerate(counts)])
        task = Glyphs(ways=ways, shots=shots, queries=1)
        source = image_source(rows, task, rotate_per_task=rotate, counts=counts, dtype=dtype)
        torch.set_num_threads(threads)
        try:
            assert equal(source.sample(KEY, 17, start=5), source._sample(KEY, 17, 5))
        finally:
            torch.set_num_threads(before)


@pytest.mark.skipif(native.kernel() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("tasks,queries", [(0, 1), (1, 1), (1, 0), (3, 0), (2, 3)])
def test_few_tasks_and_no_queries_in_machine_code(
    monkeypatch: pytest.MonkeyPatch, tasks: int, queries: int
) -> None:
    monkeypatch.setattr(native, "SINGLE_THREAD", 0)
    source = image_source(numbered(9, 6), Glyphs(ways=3, shots=1, queries=queries))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert equal(source.sample(KEY, tasks), source._sample(KEY, tasks, 0))
    finally:
        torch.set_num_threads(before)


def test_under_a_counter_of_operations_torch_draws() -> None:
    source = source_of()
    with FlopCounterMode(display=False):
        counted = source.sample(KEY, 3)
    assert equal(counted, source.sample(KEY, 3))


@settings(max_examples=60, deadline=None)
@given(
    ways=st.integers(2, 12),
    shots=st.integers(1, 5),
    queries=st.integers(0, 4),
    tasks=st.integers(1, 4),
    rotate=st.booleans(),
    ragged=st.booleans(),
    number=st.integers(0, 2**62),
)
def test_every_episode_keeps_its_promises(
    ways: int, shots: int, queries: int, tasks: int, rotate: bool, ragged: bool, number: int
) -> None:
    pool, counts = numbered(12, 9), None
    if ragged:
        counts = [9 - row % 3 if shots + queries <= 7 else 9 for row in range(12)]
        pool = torch.cat([pool[row, :count] for row, count in enumerate(counts)])
    task = Glyphs(ways=ways, shots=shots, queries=queries)
    source = image_source(pool, task, rotate_per_task=rotate, counts=counts)
    episode = source.sample(rng.fold_in(number), tasks, start=number % 1000)
    assert episode.support.x.shape == (tasks, ways * shots, 1, SIDE, SIDE)
    assert episode.query.x.shape == (tasks, ways * queries, 1, SIDE, SIDE)
    assert episode.support.y.dtype == episode.query.y.dtype == torch.int64
    assert episode.info["class_ids"].shape == (tasks, ways)
    for t in range(tasks):
        ids = episode.info["class_ids"][t]
        assert len(set(ids.tolist())) == ways and int(ids.min()) >= 0 and int(ids.max()) < 12
        used: set[tuple[int, int]] = set()
        for batch, each in ((episode.support, shots), (episode.query, queries)):
            classes, examples = identity(batch.x[t])
            assert torch.equal(ids[batch.y[t]], classes)
            assert torch.equal(
                torch.bincount(batch.y[t], minlength=ways), torch.full((ways,), each)
            )
            used |= set(zip(classes.tolist(), examples.tolist(), strict=True))
            if counts is not None:
                assert all(
                    e < counts[c] for c, e in zip(classes.tolist(), examples.tolist(), strict=True)
                )
        assert len(used) == ways * (shots + queries)


def test_info_and_spec() -> None:
    source = source_of(split="test", dtype=torch.float64, data_sha256="abc")
    episode = source.sample(KEY, 3, start=2)
    assert torch.equal(episode.info["key"], rng.fold_in(KEY, torch.arange(2, 5)))
    assert torch.equal(episode.info["step"], torch.zeros(3, dtype=torch.float64))
    spec = source.spec
    expected = ("classification", 5, 5, 12, "test")
    assert (spec.kind, spec.ways, spec.outputs, spec.num_classes, spec.split) == expected
    assert (spec.shots, spec.queries, spec.x_shape, source.data_sha256) == (
        2,
        3,
        (1, SIDE, SIDE),
        "abc",
    )


def test_labels_say_nothing_about_classes_or_places() -> None:
    """Each label is equally likely at each position and for each class: below 5 sigma."""
    source = source_of(classes=5, ways=5, shots=2, queries=2)
    episode = source.sample(KEY, 4000)
    for y in (episode.support.y, episode.query.y):
        table = torch.stack([(y == label).sum(0) for label in range(5)]).double()
        assert chi_square_sigmas(table, 800.0, degrees=9 * 4) < 5
    ids = episode.info["class_ids"]
    table = torch.stack([(ids == number).sum(0) for number in range(5)]).double()
    assert chi_square_sigmas(table, 800.0, degrees=4 * 4) < 5
    _, first = identity(episode.support.x[:, 0])
    assert chi_square_sigmas(torch.bincount(first, minlength=9).double(), 4000 / 9, degrees=8) < 5


def test_order_is_permuted_apart_in_support_and_query() -> None:
    episode = source_of(ways=5, shots=3, queries=3).sample(KEY, 400)
    sorted_labels = torch.arange(5).repeat_interleave(3)
    for y in (episode.support.y, episode.query.y):
        assert (y == sorted_labels).all(-1).double().mean() < 0.01
        assert (y.diff(dim=-1) >= 0).all(-1).double().mean() < 0.01
    agree = (episode.support.y == episode.query.y).double().mean()
    assert 0.15 < float(agree) < 0.25  # 1/5 when the two orders are independent


def test_classes_of_a_task_draw_their_examples_independently() -> None:
    """A shared draw would pair the same drawers in every class."""
    episode = source_of(ways=2, shots=1, queries=1).sample(KEY, 3000)
    _, examples = identity(episode.support.x)
    same = (examples[:, 0] == examples[:, 1]).double().mean()
    assert abs(float(same) - 1 / 9) < 5 * (1 / 9 * 8 / 9 / 3000) ** 0.5


def test_large_pools_draw_every_class_as_often() -> None:
    pool = torch.zeros(200, 2, 1, 2, 2, dtype=torch.uint8)
    source = image_source(pool, Glyphs(ways=5, shots=1, queries=1))
    counts = torch.bincount(
        source.sample(KEY, 4000).info["class_ids"].flatten(), minlength=200
    ).double()
    assert chi_square_sigmas(counts, 100.0, degrees=199) < 5


def test_ragged_classes_draw_every_image_as_often() -> None:
    counts = [30, 3, 11]
    pool = torch.cat([numbered(3, 30)[row, :count] for row, count in enumerate(counts)])
    source = image_source(pool, Glyphs(ways=3, shots=1, queries=1), counts=counts)
    episode = source.sample(KEY, 6000)
    for row, count in enumerate(counts):
        for batch in (episode.support, episode.query):
            classes, examples = identity(batch.x)
            drawn = torch.bincount(examples[classes == row], minlength=count).double()
            assert len(drawn) == count
            assert chi_square_sigmas(drawn, 6000 / count, degrees=count - 1) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_exact_fractions_of_255(dtype: torch.dtype) -> None:
    pool = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 1, 8, 8)
    episode = image_source(pool, Glyphs(ways=2, shots=1, queries=1), dtype=dtype).sample(KEY, 1)
    x = torch.cat([episode.support.x, episode.query.x]).flatten().sort().values
    wanted = torch.arange(256, dtype=torch.float64) / 255
    assert x.dtype == dtype and float(x[0]) == 0.0 and float(x[-1]) == 1.0
    assert torch.allclose(x.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_float64_draws_the_same_episodes() -> None:
    single, double = (
        source_of(dtype=dtype).sample(KEY, 4) for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single.support.y, double.support.y)
    assert torch.allclose(single.query.x.double(), double.query.x, atol=1e-7)


def test_turns_are_one_for_each_class_of_each_task_and_uniform() -> None:
    source = source_of(ways=4, shots=2, queries=2, rotate_per_task=True)
    episode = source.sample(KEY, 1000)
    plain = source_of(ways=4, shots=2, queries=2).sample(KEY, 1000)
    assert torch.equal(
        upright(episode.support.x)[0], (plain.support.x * 255).round().long().squeeze(2)
    )
    turn_of = torch.full((1000, 4), -1)
    for batch in (episode.support, episode.query):
        turns = upright(batch.x)[1]
        for label in range(4):
            here = turns[batch.y == label].view(1000, 2)
            assert torch.equal(here[:, 0], here[:, 1])
            assert bool(((turn_of[:, label] == -1) | (turn_of[:, label] == here[:, 0])).all())
            turn_of[:, label] = here[:, 0]
    assert (
        chi_square_sigmas(
            torch.bincount(turn_of.flatten(), minlength=4).double(), 1000.0, degrees=3
        )
        < 5
    )
    assert 0.15 < float((turn_of[:, 0] == turn_of[:, 1]).double().mean()) < 0.35


def test_four_rotations_are_quarter_turns_and_need_squares() -> None:
    image = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    expected = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert images.four_rotations(image).tolist() == expected
    with pytest.raises(ConfigError, match="square"):
        images.four_rotations(torch.zeros(1, 2, 3))


def test_examples_are_labelled_over_all_classes() -> None:
    source = source_of(rotate_per_task=True)
    batch = source.examples(KEY, 6000)
    classes, _ = identity(batch.x)
    assert torch.equal(classes, batch.y) and batch.x.dtype == torch.float32
    assert chi_square_sigmas(torch.bincount(batch.y, minlength=12).double(), 500.0, degrees=11) < 5
    turns = upright(batch.x)[1]
    assert chi_square_sigmas(torch.bincount(turns, minlength=4).double(), 1500.0, degrees=3) < 5
    assert torch.equal(source.examples(KEY, 10).x, batch.x[:10])


def test_no_queries_is_legal() -> None:
    episode = source_of(queries=0).sample(KEY, 3)
    assert episode.query.x.shape == (3, 0, 1, SIDE, SIDE) and episode.query.y.shape == (3, 0)
    assert equal(part(episode, 1, 2), source_of(queries=0).sample(KEY, 1, start=1))


def test_what_cannot_be_drawn_is_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        source_of(classes=4, examples=4)
    assert [place for place, _ in caught.value.problems] == ["ways", "shots"]
    assert "4 classes" in str(caught.value) and "5 different images" in str(caught.value)
    for wrong in ({"ways": 1}, {"shots": 0}, {"queries": -1}):
        with pytest.raises(ValidationError):
            Glyphs(**wrong)
    with pytest.raises(ValueError, match="uint8"):
        image_source(torch.zeros(5, 20, 1, 2, 2), Glyphs())
