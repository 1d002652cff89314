"""The random numbers: published vectors, equality of all ways to draw them, distributions."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalearn import rng
from metalearn.errors import ConfigError

KEY = rng.fold_in(11, "tests")
MASK = (1 << 64) - 1
# The first outputs of SplitMix64 from 1234567, as published with the generator.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
INT64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 2**63 - 1)), min_size=1, max_size=4)
FAST = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def key_of(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


def by_hand(seed: int, count: int) -> list[int]:
    """SplitMix64 in Python integers, one after another (Steele, Lea & Flood 2014, figure 17)."""
    state, out = seed & MASK, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def sigmas(table: Tensor, expected: float) -> float:
    """How many standard deviations a chi-square statistic over all cells lies above its mean."""
    degrees = table.numel() - 1
    return float((((table - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5)


# bits and names


def test_published_vectors() -> None:
    assert by_hand(1234567, 5) == PUBLISHED
    assert [value & MASK for value in rng.bits(key_of(1234567), (5,)).tolist()] == PUBLISHED


@FAST
@given(seed=INT64, count=st.integers(1, 70))
def test_bits_are_splitmix64_from_any_seed(seed: int, count: int) -> None:
    assert [value & MASK for value in rng.bits(key_of(seed), (count,)).tolist()] == by_hand(
        seed, count
    )


@FAST
@given(seed=INT64, names=NAMES, cut=st.integers(0, 4))
def test_fold_in_composes(seed: int, names: list[Any], cut: int) -> None:
    whole = rng.fold_in(seed, *names)
    assert torch.equal(whole, rng.fold_in(rng.fold_in(seed, *names[:cut]), *names[cut:]))
    assert whole.dtype == torch.int64 and whole.shape == ()


@FAST
@given(seed=INT64, names=NAMES)
def test_whole_numbers_and_tensors_give_the_same_keys(seed: int, names: list[Any]) -> None:
    """In Python, from a tensor as key, and with a tensor as name."""
    expected = rng.fold_in(seed, *names)
    assert torch.equal(rng.fold_in(key_of(seed), *names), expected)
    with_tensors = [key_of(name) if isinstance(name, int) else name for name in names]
    assert torch.equal(rng.fold_in(seed, *with_tensors), expected)


def test_keys_stand_still() -> None:
    """Seeds and names mean the same numbers for ever: records of runs depend on it."""
    found = [
        int(rng.fold_in(0)),
        int(rng.fold_in(0, "init")),
        int(rng.fold_in(1, "train", 7)),
        int(rng.fold_in(-1, 0)),
    ]
    assert found == [0, -3939950457782954866, -8477879501365000913, 539484414468452969]


def test_keys_and_their_numbers_do_not_meet() -> None:
    """Keys of many names and seeds, and the first numbers of each, are all different."""
    keys = [
        rng.fold_in(seed, name, n)
        for seed in range(8)
        for name in ("a", "b", 0, 1)
        for n in range(8)
    ]
    drawn = [*torch.stack(keys).tolist(), *rng.bits(torch.stack(keys), (64,)).flatten().tolist()]
    assert len(set(drawn)) == len(drawn)
    assert rng.fold_in(0, "a", "b") != rng.fold_in(0, "b", "a") != rng.fold_in(0, "ab")
    assert rng.fold_in(3, 4) != rng.fold_in(4, 3)


# however
# they are drawn: equal

DRAWS: dict[str, Any] = {
    "bits": lambda key: rng.bits(key, (3, 5)),
    "uniform32": lambda key: rng.uniform(key, (7,), -2.0, 5.0),
    "uniform64": lambda key: rng.uniform(key, (7,), dtype=torch.float64),
    "normal32": lambda key: rng.normal(key, (2, 3)),
    "normal64": lambda key: rng.normal(key, (2, 3), torch.float64),
    "integers": lambda key: rng.integers(key, (9,), 13),
    "permutation": lambda key: rng.permutation(key, 13),
    "choice by sorting": lambda key: rng.choice(key, 20, 6),
    "choice of many": lambda key: rng.choice(key, 1028, 5),
    "fold_in": lambda key: rng.fold_in(key, "name", 3),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_same_alone_in_a_batch_under_vmap_and_in_chunks(draw: Any) -> None:
    keys = rng.fold_in(KEY, torch.arange(12))
    together = draw(keys)
    assert torch.equal(together, torch.stack([draw(key) for key in keys]))
    assert torch.equal(together, torch.func.vmap(draw)(keys))
    assert torch.equal(together, torch.cat([draw(part) for part in keys.split(5)]))
    assert torch.equal(together, draw(keys.reshape(3, 4)).reshape(together.shape))
    assert len({str(row) for row in together.tolist()}) == 12


def test_torchs_own_generator_has_no_part() -> None:
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), [draw(KEY) for draw in DRAWS.values()]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(a, draw(KEY)) for a, draw in zip(first, DRAWS.values(), strict=True))


@FAST
@given(seed=INT64, short=st.integers(1, 20), more=st.integers(0, 20))
def test_a_longer_draw_begins_with_the_shorter(seed: int, short: int, more: int) -> None:
    for draw in (rng.bits, rng.uniform):
        assert torch.equal(
            draw(key_of(seed), (short + more,))[:short], draw(key_of(seed), (short,))
        )
    # The same uniform numbers; the last digit of a logarithm may differ between a vector's middle
    # and its end.
    torch.testing.assert_close(
        rng.normal(key_of(seed), (short + more,))[:short], rng.normal(key_of(seed), (short,))
    )


ODD = """
import torch
from metalearn import rng
sizes = (1, 7, 13, 35, 1028, 1031)
keys = rng.fold_in(5, torch.arange(2))
draw = lambda keys: [rng.bits(keys, (n,)) for n in sizes]
made = torch.compile(draw, fullgraph=True, dynamic=False)
for ours, theirs in zip(draw(keys), made(keys), strict=True):
    assert torch.equal(ours, theirs), (ours, theirs)
print("equal")
"""


def test_the_compiled_generator_equals_eager_at_odd_sizes() -> None:
    """In another process: constant * `arange` corrupts memory in torch 2.13's CPU compiler."""
    from metalearn.executors.executor import compiler_found

    if not compiler_found():
        pytest.skip("torch.compile needs a C++ compiler, and none was found")
    done = subprocess.run(
        [sys.executable, "-c", ODD],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-2000:]


# distributions

MANY = 200_000


@FAST
@given(seed=INT64, low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3))
def test_uniform_keeps_its_bounds(seed: int, low: float, width: float) -> None:
    for dtype in (torch.float32, torch.float64):
        u = rng.uniform(key_of(seed), (50,), low, low + width, dtype=dtype)
        slack = 4 * torch.finfo(dtype).eps * (abs(low) + width)
        assert u.dtype == dtype and u.min() >= low - slack and u.max() <= low + width + slack
        assert rng.uniform(key_of(seed), (50,), dtype=dtype).max() < 1


def test_uniform_reaches_below_one_and_zero_and_never_one() -> None:
    """The largest and the smallest bits give [0, 1) in both precisions."""
    for dtype, bits in ((torch.float32, 24), (torch.float64, 53)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rng, "bits", lambda key, shape: torch.tensor([-1, 0]))
            high, low = rng.uniform(KEY, (2,), dtype=dtype).tolist()
        assert (high, low) == (1 - 2.0**-bits, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_the_uniform(dtype: torch.dtype) -> None:
    u = rng.uniform(KEY, (MANY,), dtype=dtype).double()
    for power in (1, 2, 3, 4):
        sd = math.sqrt((1 / (2 * power + 1) - 1 / (power + 1) ** 2) / MANY)
        assert abs(float((u**power).mean()) - 1 / (power + 1)) < 4 * sd
    assert sigmas(torch.histc(u, 100, 0, 1), MANY / 100) < 4
    assert abs(float(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1])) < 4 / MANY**0.5


@pytest.mark.parametrize("draw", [rng.uniform, rng.normal])
def test_float32_and_float64_are_the_same_numbers(draw: Any) -> None:
    fine, coarse = draw(KEY, (1000,), dtype=torch.float64), draw(KEY, (1000,), dtype=torch.float32)
    assert fine.dtype == torch.float64 and coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), fine, rtol=1e-6, atol=2.0**-24)


def test_moments_of_the_normal() -> None:
    z = rng.normal(KEY, (MANY,), torch.float64)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((z**power).mean()) - moment) < 4 * math.sqrt(variance / MANY), power
    cells = torch.histc(torch.special.ndtr(z), 100, 0, 1)
    assert sigmas(cells, MANY / 100) < 4
    assert z.isfinite().all() and 4 < z.abs().max() < 7


def test_the_normal_of_the_extreme_bits_is_finite() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for word in (0, -1):
            patch.setattr(rng, "bits", lambda key, shape, word=word: torch.full(shape, word))
            assert rng.normal(KEY, (1,), torch.float64).isfinite().all()


def test_integers_are_uniform_and_in_range() -> None:
    for high in (1, 2, 7, 1000):
        drawn = rng.integers(KEY, (MANY,), high)
        assert drawn.min() >= 0 and drawn.max() == high - 1
        assert high == 1 or sigmas(torch.bincount(drawn, minlength=high), MANY / high) < 4


def test_permutations_are_uniform() -> None:
    """All 120 orders of five equally often."""
    drawn = rng.permutation(rng.fold_in(KEY, torch.arange(60_000)), 5)
    numbers = (drawn * 5 ** torch.arange(5)).sum(-1)
    _, counts = numbers.unique(return_counts=True)
    assert len(counts) == 120 and sigmas(counts, 500) < 4


@FAST
@given(seed=INT64, size=st.integers(1, 300), data=st.data())
def test_a_choice_is_of_different_numbers_in_range(seed: int, size: int, data: Any) -> None:
    count = data.draw(st.integers(0, min(size, 40)))
    drawn = rng.choice(key_of(seed), size, count).tolist()
    assert len(drawn) == len(set(drawn)) == count and set(drawn) <= set(range(size))


@pytest.mark.parametrize(
    ("size", "count"), [(6, 3), (40, 2), (33, 3)], ids=["sorting", "many, 2", "many, 3"]
)
def test_a_choice_is_uniform_over_subsets_and_places(size: int, count: int) -> None:
    """Sorting to 32 numbers, Floyd beyond: 20 sets of 3 of 6, 780 of 2 of 40, 5,456 of 3 of 33."""
    tries = 30 * math.comb(size, count) if size > 6 else 20_000
    drawn = rng.choice(rng.fold_in(KEY, torch.arange(tries)), size, count)
    ordered = drawn.sort(-1).values
    _, counts = (ordered * size ** torch.arange(count)).sum(-1).unique(return_counts=True)
    every = torch.zeros(math.comb(size, count))
    every[: len(counts)] = counts.float()
    assert sigmas(every, tries / len(every)) < 4
    for place in range(count):
        assert sigmas(torch.bincount(drawn[:, place], minlength=size), tries / size) < 4
    for one, two in itertools.combinations(
        range(count), 2
    ):  # which of two places holds the larger is a coin
        assert abs(float((drawn[:, one] < drawn[:, two]).double().mean()) - 0.5) < 2 / tries**0.5


def test_more_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="cannot choose 6 distinct elements of 5"):
        rng.choice(KEY, 5, 6)
    assert sorted(rng.choice(KEY, 5, 5).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(rng.choice(KEY, 400, 400).tolist()) == list(range(400))


def test_draws_made_together_are_those_of_folded_keys() -> None:
    keys = rng.fold_in(KEY, torch.arange(12))
    starts = [rng.chain("a", place) for place in range(3)]
    words = rng.Words(
        [
            rng.chains(rng.chain(4), 5),
            [one for start in starts for one in rng.chains(start, 2)],
            [],
            rng.chains((), 3),
        ],
        "cpu",
    )
    each = rng.fold_in(keys.unsqueeze(-1), "a", torch.arange(3))
    one, two, none, three = words(keys)
    assert torch.equal(one, rng.bits(rng.fold_in(keys, 4), (5,)))
    assert torch.equal(two, rng.bits(each, (2,)).flatten(1)) and none.shape == (12, 0)
    assert torch.equal(three, rng.bits(keys, (3,)))
    assert all(torch.equal(a[0], b) for a, b in zip(words(keys), words(keys[0]), strict=True))


@FAST
@given(seed=INT64, least=st.integers(0, 6), count=st.integers(0, 12))
def test_floyd_takes_the_last_number_where_a_draw_was_chosen(
    seed: int, least: int, count: int
) -> None:
    """Round after round, as in the paper; few numbers, so that many draws repeat."""
    words, size = rng.bits(key_of(seed), (count,)), least + count
    expected: list[int] = []
    for place, word in enumerate(words.tolist()):
        drawn = (((word >> 33) & (2**31 - 1)) * (least + place + 1)) >> 31
        expected.append(least + place if drawn in expected else drawn)
    order = torch.arange(count)
    for form in (size, torch.tensor(size)):
        assert rng.floyd(words, order, form).tolist() == expected


def test_a_name_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0.1 is truncated to 0 in a key: use str\(0.1\)"):
        rng.fold_in(0, 0.1)  # type: ignore[arg-type]
    assert rng.fold_in(0, 2.0) == rng.fold_in(0, 2)  # type: ignore[arg-type]
