"""The choice between a Triton kernel and torch's operators, with functions in their places."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from metalearn.kernels import choice, draw, draw_in_torch
from metalearn.kernels.choice import Implementations
from metalearn.rng import fold_in


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def added(x: Tensor) -> Tensor:
    return x + x


def tripled(x: Tensor) -> Tensor:
    return 3 * x


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("no such instruction\nmore")


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[Callable[..., Tensor], float]:
    """Triton is there, nothing is chosen yet, and each function takes so long."""
    found: dict[Callable[..., Tensor], float] = {doubled: 1.0, added: 2.0}
    monkeypatch.delenv("METALEARN_TRITON", raising=False)
    monkeypatch.setattr(choice, "available", lambda: True)
    monkeypatch.setattr(choice, "_seconds", lambda function, args: found[function])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "_measured", [])
    return found


def runs(
    in_triton: Callable[..., Tensor],
    in_torch: Callable[..., Tensor],
    x: Tensor,
    exact: bool = True,
) -> str:
    assert torch.equal(
        choice.run(Implementations("twice", in_triton, in_torch, exact), x), doubled(x)
    )
    return choice.measured()[-1][1]


def test_the_faster_is_chosen_once_for_each_shape_and_type(
    seconds: dict[Callable[..., Tensor], float],
) -> None:
    assert runs(doubled, added, torch.ones(3)) == "triton"
    seconds[doubled] = 3.0
    runs(doubled, added, torch.zeros(3))
    assert choice.measured() == [("twice 3", "triton", 1.0, 2.0)]
    assert runs(doubled, added, torch.ones(4)) == "torch"
    assert runs(doubled, added, torch.ones(3, dtype=torch.float64)) == "torch"
    assert len(choice.measured()) == 3


@pytest.mark.parametrize(("wrong", "why"), [(broken, "no such"), (tripled, "its results differ")])
def test_a_kernel_that_fails_or_differs_is_left_out_with_a_warning(
    wrong: Callable[..., Tensor], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="metalearn"):
        assert runs(wrong, doubled, torch.ones(3)) == "torch"
        runs(wrong, doubled, torch.zeros(3))
    assert [why in record.getMessage() for record in caplog.records] == [True]


def test_nothing_is_measured_in_a_capture_nor_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.ones(3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    choice.run(Implementations("twice", broken, added, False), x)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    choice.run(Implementations("twice", broken, added, False), x.long())
    monkeypatch.setattr(choice, "available", lambda: False)
    choice.run(Implementations("twice", broken, added, False), x)
    assert choice.measured() == []


def test_a_clock_decides_only_where_the_bits_are_equal() -> None:
    assert runs(added, doubled, torch.ones(3)) == "torch"
    assert runs(added, doubled, torch.ones(4), exact=False) == "triton"
    assert choice.measured()[-1] == ("twice 4", "triton", None, None)


def test_numbers_on_which_no_time_depends_are_no_case_of_their_own(
    seconds: dict[Callable[..., Tensor], float],
) -> None:
    def row(x: Tensor, first: int) -> Tensor:
        return x + first

    implementations, seconds[row] = Implementations("row", row, row, True, (1,)), 1.0
    for first in range(3):
        assert torch.equal(choice.run(implementations, torch.ones(3), first), torch.ones(3) + first)
    assert len(choice.measured()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_one_wrong_number_among_many_is_found(value: float) -> None:
    right = torch.ones(100_000)
    wrong = right.clone()
    wrong[7] = value
    assert choice._is_close(right, right) and choice._is_close(right * 1.001, right)
    assert not choice._is_close(wrong, right)
    assert choice._is_close(wrong, wrong) and not choice._is_close(right, wrong)


def test_with_deterministic_algorithms_no_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert runs(added, doubled, torch.ones(3)) == "triton"


def test_it_can_be_forced_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_TRITON", "1")
    with pytest.raises(RuntimeError, match="no such instruction"):
        choice.run(Implementations("twice", broken, added, False), torch.ones(3))


def test_draws_take_torchs_operators_where_own_kernels_are_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draw, "available", lambda: True)
    given = cast(Tensor, SimpleNamespace(is_cuda=True))
    for value, expected in (("1", True), ("0", False)):
        monkeypatch.setenv("METALEARN_CUDA_KERNELS", value)
        assert draw._is_in_triton(given) is expected


@pytest.mark.parametrize("sizes", [(5, 1, 1, 1028, 20, 0), (3, 2, 0, 5, 7, 9), (4, 2, 3, 9, 0, 9)])
def test_draws_are_of_the_shapes_and_strides_that_traces_assume(sizes: tuple[int, ...]) -> None:
    counts = torch.tensor([sizes[4] or 40] * sizes[3])
    given = fold_in(5, "key"), counts, counts.cumsum(0) - counts, 3, 2, *sizes
    for one, other in zip(draw_in_torch.episode_rows(*given), draw._rows_fake(*given), strict=True):
        assert (one.shape, one.stride()) == (other.shape, other.stride())
