"""Assertions about trees of tensors, with a sentence that names the leaves that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.tree import named_leaves

SHOWN = 3  # leaves that a sentence names


def expect_same(found: Any, expected: Any, text: str) -> None:
    """Assert that leaves are bitwise equal; `text` is the sentence up to "differs in"."""
    left, right = _pairs(found, expected, text)
    different = [name for name in right if not torch.equal(left[name], right[name])]
    if different:
        raise AssertionError(f"{text} differs in {_list(different)}")


def expect_close(found: Any, expected: Any, text: str, *, rtol: float, atol: float) -> None:
    """Assert that leaves are equal within a tolerance; `text` as in `expect_same`."""
    left, right = _pairs(found, expected, text)
    different = []
    for name in right:
        try:
            torch.testing.assert_close(left[name], right[name], rtol=rtol, atol=atol)
        except AssertionError:
            place = name or "its value"
            different.append(f"{place} ({_difference(left[name], right[name])})")
    if different:
        limits = f"rtol {rtol:g}, atol {atol:g}"
        raise AssertionError(f"{text} differs by more than {limits} in {_list(different)}")


def _pairs(found: Any, expected: Any, text: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    left, right = named_leaves(found), named_leaves(expected)
    if left.keys() != right.keys():
        names = f"{_list(list(left)) or 'none'}; expected {_list(list(right)) or 'none'}"
        raise AssertionError(f"{text} differs in its tensors: found {names}")
    return left, right


def _difference(left: Tensor, right: Tensor) -> str:
    if left.shape != right.shape or left.dtype != right.dtype:
        forms = (f"{value.dtype} {list(value.shape)}" for value in (left, right))
        return " instead of ".join(forms)
    return f"by up to {float((left.double() - right.double()).abs().max()):.3g}"


def _list(names: list[str]) -> str:
    """Return the first names as a text; a leaf without a name is the value itself."""
    more = len(names) - SHOWN
    shown = ", ".join(name or "its value" for name in names[:SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
