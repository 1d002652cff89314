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
TOLERANCE = 1e-2  # largest difference of two results, relative to the largest number
TOLERANCE_BFLOAT16 = 3e-2  # the same in a type whose last place is 2^-8
SLEEP = 1_000_000  # clock cycles in which the host queues what is timed
_chosen: dict[Any, bool] = {}  # whether Triton runs
_measured: list[Choice] = []  # what was measured, for a report


class Implementations(NamedTuple):
    """Two implementations of an operator: functions of the same arguments with the same results."""

    name: str
    in_triton: Operator
    in_torch: Operator
    exact: bool
    data: tuple[int, ...] = ()  # indices of numbers on which no time depends


def register(
    library: torch.library.Library,
    in_triton: Any,
    in_torch: Any,
    *names: str,
    exact: bool = False,
    data: tuple[int, ...] = (),
) -> None:
    """Register the functions `names` of two modules as CUDA kernels of operators of these names.

    `exact`: their results are bitwise equal, and their arguments of any type. `data`: indices of
    arguments whose values do not count in the choice."""
    for name in names:
        implementations = Implementations(
            name, getattr(in_triton, name), getattr(in_torch, name), exact, data
        )
        library.impl(name, partial(run, implementations), "CUDA")


def measured() -> list[Choice]:
    """Return what was measured in this process.

    (operator and shapes, the implementation that runs, seconds of Triton's, seconds of torch's)"""
    return list(_measured)


def run(operator: Implementations, *args: Any) -> Any:
    """Return the results of the implementation that was chosen earlier, or is chosen now."""
    return (operator.in_triton if _prefers_triton(operator, args) else operator.in_torch)(*args)


def _prefers_triton(operator: Implementations, args: tuple[Any, ...]) -> bool:
    if not available() or not (operator.exact or _one_type(args)):
        return False
    if os.environ.get("METALEARN_TRITON") == "1":
        return True
    relevant = (argument for index, argument in enumerate(args) if index not in operator.data)
    key = operator.name, torch.are_deterministic_algorithms_enabled(), *map(_signature, relevant)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return False
        _chosen[key] = _is_faster(operator, args)
    return _chosen[key]


def _one_type(args: tuple[Any, ...]) -> bool:
    """Return whether all arrays but those of integers have one floating-point type."""
    arrays = [value for value in args if isinstance(value, Tensor)]
    kinds = {value.dtype for value in arrays if value.dtype != torch.int64}
    return len(kinds) == 1 and kinds <= TYPES


def _signature(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.dtype, value.device


def _is_faster(operator: Implementations, args: tuple[Any, ...]) -> bool:
    call = " ".join((operator.name, *(_describe(argument) for argument in args)))
    expected = operator.in_torch(*args)
    try:
        results, agrees = operator.in_triton(*args), torch.equal if operator.exact else _is_close
        pairs = zip(_as_list(results), _as_list(expected))
        all_agree = all(agrees(result, reference) for result, reference in pairs)
        problem = None if all_agree else "its results differ from those of torch's operators"
    except Exception as error:  # whatever a compiler raises: torch's operators are always there
        problem = f"{type(error).__name__}: {first_line(error)}"
    if problem is not None:
        log.warning(f"the Triton kernel of {call} is not used: {problem}")
        _measured.append((call, "torch", None, None))
        return False
    if not operator.exact or torch.are_deterministic_algorithms_enabled():
        _measured.append((call, "triton", None, None))
        return True
    triton_seconds, torch_seconds = (
        _seconds(function, args) for function in (operator.in_triton, operator.in_torch)
    )
    faster = "triton" if triton_seconds <= torch_seconds else "torch"
    _measured.append((call, faster, triton_seconds, torch_seconds))
    return triton_seconds <= torch_seconds


def _as_list(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _is_close(result: Tensor, reference: Tensor) -> bool:
    """Return whether two results agree: finite at the same indices, and close there."""
    if result.shape != reference.shape or not torch.equal(result.isfinite(), reference.isfinite()):
        return False
    finite = reference.isfinite()
    tolerance = TOLERANCE_BFLOAT16 if reference.dtype == torch.bfloat16 else TOLERANCE
    result, reference = result[finite].double(), reference[finite].double()
    if not reference.numel():
        return True
    return bool((result - reference).abs().max() <= tolerance * reference.abs().max() + 1e-6)


def _seconds(function: Operator, args: tuple[Any, ...]) -> float:
    """Return the least time of a call, by the device's clock."""
    least = float("inf")
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if hasattr(torch._C, "_cuda_sleep"):  # else the launches of the host are timed
            torch.cuda._sleep(SLEEP)
        start.record()
        function(*args)
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) / 1000)
    return least


def _describe(value: Any) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else str(value)
