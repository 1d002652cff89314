"""Two implementations of an operator on CUDA, in Triton and in torch's operators: one is chosen for
each combination of shapes and types, at its first use.

A Triton kernel that fails, or whose results are not those of torch's operators, is left out with a
warning; any other one runs. Timing decides only if the results of both are bitwise equal, so that a
resumed run and every rank compute the same, and never with `run.deterministic`. Within a capture
nothing can be compared: an operator that is not chosen yet runs with torch's operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.errors import first_line
from metalearn.kernels.launch import available
from metalearn.logger import log

Operator = Callable[..., Any]
Choice = tuple[str, str, float | None, float | None]
TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
REPEATS = 5
FAR = 1e-2  # in units of a result's largest number: the largest difference between both
FAR_BFLOAT16 = 3e-2  # the same in a type whose last place is 2^-8
SLEEP = 1_000_000  # clock cycles in which the host queues what is timed
_chosen: dict[Any, bool] = {}  # whether Triton runs
_measured: list[Choice] = []  # what was measured, for a report


class Ways(NamedTuple):
    """Two functions of the same arguments with the same results."""

    name: str
    in_triton: Operator
    in_torch: Operator
    exact: bool
    data: tuple[int, ...] = ()  # places of numbers on which no time depends


def register(
    library: torch.library.Library,
    in_triton: Any,
    in_torch: Any,
    *names: str,
    exact: bool = False,
    data: tuple[int, ...] = (),
) -> None:
    """The functions `names` of two modules as CUDA kernels of the operators of these names.

    `exact`: their results are equal bit for bit, and their arguments of any type. `data`: places
    of arguments whose values do not count in the choice."""
    for name in names:
        ways = Ways(name, getattr(in_triton, name), getattr(in_torch, name), exact, data)
        library.impl(name, partial(run, ways), "CUDA")


def measured() -> list[Choice]:
    """(operator and shapes, the one that runs, seconds of Triton's, of torch's) in this process."""
    return list(_measured)


def run(ways: Ways, *args: Any) -> Any:
    """The results of the implementation that was or is chosen."""
    return (ways.in_triton if _prefers_triton(ways, args) else ways.in_torch)(*args)


def _prefers_triton(ways: Ways, args: tuple[Any, ...]) -> bool:
    if not available() or not (ways.exact or _one_type(args)):
        return False
    if os.environ.get("METALEARN_TRITON") == "1":
        return True
    forms = [_form(value) for place, value in enumerate(args) if place not in ways.data]
    key = ways.name, torch.are_deterministic_algorithms_enabled(), *forms
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return False
        _chosen[key] = _is_faster(ways, args)
    return _chosen[key]


def _one_type(args: tuple[Any, ...]) -> bool:
    """Whether all arrays have one floating-point type, but for those of integers."""
    arrays = [value for value in args if isinstance(value, Tensor)]
    kinds = {value.dtype for value in arrays if value.dtype != torch.int64}
    return len(kinds) == 1 and kinds <= TYPES


def _form(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.dtype, value.device


def _is_faster(ways: Ways, args: tuple[Any, ...]) -> bool:
    what = " ".join((ways.name, *(_words(value) for value in args)))
    right = ways.in_torch(*args)
    try:
        found, near = ways.in_triton(*args), torch.equal if ways.exact else _near
        agree = all(near(one, other) for one, other in zip(_list(found), _list(right)))
        problem = None if agree else "its results differ from those of torch's operators"
    except Exception as error:  # whatever a compiler raises: torch's operators are always there
        problem = f"{type(error).__name__}: {first_line(error)}"
    if problem is not None:
        log.warning(f"the Triton kernel of {what} is not used: {problem}")
        _measured.append((what, "torch", None, None))
        return False
    if not ways.exact or torch.are_deterministic_algorithms_enabled():
        _measured.append((what, "triton", None, None))
        return True
    ours, theirs = (_seconds(way, args) for way in (ways.in_triton, ways.in_torch))
    _measured.append((what, "triton" if ours <= theirs else "torch", ours, theirs))
    return ours <= theirs


def _list(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether two results agree: finite at the same places, and nowhere far apart there."""
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return False
    finite, far = other.isfinite(), FAR_BFLOAT16 if other.dtype == torch.bfloat16 else FAR
    one, other = one[finite].double(), other[finite].double()
    if not other.numel():
        return True
    return bool((one - other).abs().max() <= far * other.abs().max() + 1e-6)


def _seconds(way: Operator, args: tuple[Any, ...]) -> float:
    """The least time of a call, by the device's clock."""
    least = float("inf")
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if hasattr(torch._C, "_cuda_sleep"):  # else the launches of the host are timed
            torch.cuda._sleep(SLEEP)
        start.record()
        way(*args)
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) / 1000)
    return least


def _words(value: Any) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else str(value)
