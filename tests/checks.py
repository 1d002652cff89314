"""The contract suite of metalearn.testing over tables: a new line is tested by itself.

Some checks need a part that not every method has (`needs`); `EXEMPT` names single exceptions with
their reason."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_options import EXEMPT, OPTIONS

from metalearn.component import MethodComponent
from metalearn.testing.case import (
    F64,
    TASKS,
    Case,
    close,
    episodes,
    inapplicable,
    method_case,
    same,
)

__all__ = ["F64", "GOLDEN", "OPTIONS", "TASKS", "Case", "case", "close", "episodes", "same"]
GOLDEN = Path(__file__).parent / "golden"
Check = Callable[[Case], None]


def case(
    name: str,
    component: type[Any],
    norm: str = "none",
    dtype: torch.dtype = F64,
    **options: Any,
) -> Case:
    """The method on the small problem, with the options that it learns this problem with."""
    settings = {**OPTIONS.get(name, {}), **options}
    return method_case(component, settings, norm=norm, dtype=dtype, name=name)


def why_not(name: str, component: type[MethodComponent], check: Check) -> str:
    """Why a check does not apply to a method; empty where it does, and where the method cannot even
    be built."""
    if hasattr(check, "needs"):
        try:
            why = inapplicable(_built(name, component), check)
        except Exception:  # the check itself will meet the error and show it
            return ""
        if why:
            return why
    return EXEMPT.get((name, check.__name__), "")


@functools.cache
def _built(name: str, component: type[MethodComponent]) -> Case:
    """The case whose parts decide which checks apply, built once for all of them."""
    return case(name, component)


def parametrize(
    table: dict[str, type[MethodComponent]], checks: Iterable[Check]
) -> pytest.MarkDecorator:
    """`@parametrize(TABLE, CHECKS) def test(name, component, check)`: every check that applies to
    each line."""
    pairs = [
        (name, part, check)
        for name, part in table.items()
        for check in checks
        if not why_not(name, part, check)
    ]
    return pytest.mark.parametrize(
        ("name", "component", "check"),
        pairs,
        ids=[f"{name}-{check.__name__.removeprefix('check_')}" for name, _, check in pairs],
    )


def golden_rows(given: Case, steps: int = 20) -> list[dict[str, float]]:
    """Every metric of the first steps, as tests/golden/ holds them."""
    state, rows = given.state(), []
    for number in range(steps):
        state, metrics = given.step(state, given.data(number))
        rows.append({"step": number + 1, **{name: float(value) for name, value in metrics.items()}})
    return rows
